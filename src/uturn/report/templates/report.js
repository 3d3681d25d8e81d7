"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  // Names come from strangers' files: they only ever become text or attribute values.
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  const select = document.getElementById("attack");
  for (const name of data.attacks) select.append(make("option", { value: name }, name));
  select.value = data.attack;
  const budgets = document.getElementById("eps");
  for (const eps of data.eps) {
    const input = make("input", { type: "radio", name: "eps", value: eps });
    input.checked = eps === data.start;
    budgets.append(make("label", {}, input, ` ${eps}`));
  }

  const picture = (source, caption) => make("div", {}, make("img", { src: source, alt: caption }), caption);
  const ranks = (title, items) => {
    const list = make("ol", { class: "ranks" });
    items.forEach((item, i) => {
      const verdict = item.relevant ? "right" : "wrong";
      const says = `${i + 1}. ${item.name}, score ${item.score.toFixed(3)}, ${verdict}`;
      const image = make("img", { src: data.thumbnails[item.name], alt: says, title: says });
      list.append(make("li", { class: verdict }, image, item.score.toFixed(2)));
    });
    return make("div", {}, make("p", {}, title), list);
  };

  const show = () => {
    const eps = Number(budgets.querySelector("input:checked").value);
    const cards = data.queries.map((query) => {
      const before = query.answers.find((a) => a.eps === 0);
      const after = query.answers.find((a) => a.attack === select.value && a.eps === eps);
      const angle = (Math.acos(Math.max(-1, Math.min(1, after.cosine))) * 180) / Math.PI;
      const turned = make("span", { class: "cosine" }, ` turned by ${angle.toFixed(0)}°, cosine ${after.cosine.toFixed(2)}`);
      return make("article", { class: "card" },
        make("h3", {}, query.name, turned),
        make("div", { class: "body" },
          make("div", { class: "query" },
            picture(before.picture, "query"),
            picture(after.change, `change × ${(127.5 / eps).toFixed(0)}`),
            picture(after.picture, "adversarial")),
          make("div", { class: "lists" },
            ranks("before", before.items),
            ranks(`after ${after.attack}, ε = ${eps}`, after.items))));
    });
    document.getElementById("cards").replaceChildren(...cards);
    const lost = data.queries.filter((query) => {
      const after = query.answers.find((a) => a.attack === select.value && a.eps === eps);
      return !after.items.some((item, i) => i === 0 && item.relevant);
    });
    document.getElementById("shown").textContent =
      `${select.value}, ε = ${eps}: a wrong item stands first for ${lost.length} of these ${data.queries.length} queries.`;
  };
  document.getElementById("controls").addEventListener("change", show);
  show();

  for (const table of document.querySelectorAll("table.results")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
        const order = Number.isNaN(x) || Number.isNaN(y) ? key(a).localeCompare(key(b)) : x - y;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    }));
  }
})();
