"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("table");
  if (!table) return;
  const bodies = [...table.tBodies];
  const search = byId("search"), problems = byId("problems"), count = byId("count");
  const rank = { error: 0, warning: 1, note: 2 };
  const nameOf = (body) => body.querySelector("th").firstChild.textContent.trim();
  const services = bodies.map((body, at) => ({ body, at, name: nameOf(body), rank: rank[body.className] ?? 3 }));
  const serviceOf = new Map(services.map((service) => [service.body, service]));
  let sorted = { by: "", down: false };

  // What a row says. A cell that spans rows counts for all of them.
  const ways = (body) => {
    const found = [];
    let to = null;
    for (const row of body.rows) {
      const cells = [...row.cells].filter((cell) => cell.tagName === "TD");
      if (row.className === "remark" || row.className === "picture") continue;
      if (cells.length === 4 || cells.length === 2) to = cells.shift();
      if (cells.length === 3) found.push({ to, from: cells[0], chains: cells[1], ends: endsOf(cells[2]), want: row.className === "want" });
    }
    return found;
  };
  const endsOf = (cell) => {
    const ends = [];
    let share = "";
    for (const node of cell.childNodes) {
      if (node.nodeName === "B") { share = node.textContent; continue; }
      for (const text of node.textContent.split(",")) {
        if (text.trim()) ends.push({ share, text: text.trim(), ill: node.nodeName === "EM" });
      }
    }
    return ends;
  };
  const linesOf = (cell) => [...cell.childNodes].filter((node) => node.nodeName !== "BR").map((node) => node.textContent);
  const numberOf = (share) => { const [n, of] = share.split("/"); return n / (of || 1); };

  // Pictures: one band for each way, in which it runs from left to right.
  const LINE = 18, PAD = 8, GAP = 76, LETTER = 7.9, MOST = 60;
  const svg = (name, attributes, ...inside) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...inside);
    return node;
  };
  const box = (kind, x, y, width, height, lines) => svg("g", { class: kind },
    svg("rect", { x, y, width, height, rx: 5 }),
    ...lines.map((line, at) => svg("text", { x: x + PAD, y: y + height / 2 + LINE * (at + 0.5 - lines.length / 2) + 4.5 }, line)));
  const draw = (service) => {
    const all = ways(service.body).filter((way) => !way.want);
    const bands = all.map((way) => {
      const more = way.ends.length - MOST;
      const ends = way.ends.slice(0, MOST).map((end) => ({ ...end, lines: [end.text] }));
      if (more > 0) ends.push({ share: "", text: "", lines: ["and " + more + " more"] });
      const from = linesOf(way.from), chains = way.chains.textContent.split(" › ");
      const height = Math.max(from.length * LINE + 2 * PAD, chains.length * LINE + 2 * PAD, ends.length * (LINE + 14));
      return { way, from, chains, ends, height };
    });
    const widest = (lists) => Math.max(0, ...lists.flat().map((text) => text.length)) * LETTER + 2 * PAD;
    const toLines = (way) => [way.to.firstChild.textContent, way.to.querySelector("small").textContent];
    const widths = [widest(bands.map((b) => b.from)), widest(bands.map((b) => toLines(b.way))), widest(bands.map((b) => b.chains)), widest(bands.map((b) => b.ends.flatMap((e) => e.lines)))];
    const lefts = [4, 0, 0, 0];
    for (let at = 1; at < 4; at++) lefts[at] = lefts[at - 1] + widths[at - 1] + GAP;
    const paths = [], boxes = [];
    ["from", "destination", "chains", "endpoints"].forEach((text, at) => boxes.push(svg("text", { class: "head", x: lefts[at], y: 14 }, text)));
    let y = 26, span = null;
    const close = () => { if (span) boxes.push(box("to", lefts[1], span.top, widths[1], y - 14 - span.top, span.lines)); };
    const line = (x1, y1, x2, y2, share) => paths.push(svg("path", { d: `M${x1} ${y1}C${x1 + GAP / 2} ${y1} ${x2 - GAP / 2} ${y2} ${x2} ${y2}`, "stroke-width": Math.max(1.2, 6 * share) }));
    for (const band of bands) {
      if (!span || span.to !== band.way.to) { close(); span = { to: band.way.to, top: y, lines: toLines(band.way) }; }
      const middle = y + band.height / 2;
      const put = (column, kind, lines) => {
        const height = lines.length * LINE + 2 * PAD;
        boxes.push(box(kind, lefts[column], middle - height / 2, widths[column], height, lines));
      };
      put(0, "from", band.from);
      put(2, "chain", band.chains);
      line(lefts[0] + widths[0], middle, lefts[1], middle, 1);
      line(lefts[1] + widths[1], middle, lefts[2], middle, 1);
      band.ends.forEach((end, at) => {
        const center = middle + (at - (band.ends.length - 1) / 2) * (LINE + 14);
        line(lefts[2] + widths[2], middle, lefts[3], center, numberOf(end.share) || 0);
        boxes.push(box(end.ill ? "ill" : "end", lefts[3], center - LINE / 2 - 4, widths[3], LINE + 8, end.lines));
        boxes.push(svg("text", { class: "share", x: lefts[3] - 8, y: center - 6 }, end.share));
      });
      y += band.height + 14;
    }
    close();
    const width = lefts[3] + widths[3] + 4;
    const text = "Ways of connections to " + service.name + ": " + all.map((way) => linesOf(way.from).join(", ") + " to " + way.to.firstChild.textContent + " by " + way.chains.textContent + " to " + way.ends.map((end) => end.share + " " + end.text).join(", ")).join("; ");
    return svg("svg", { width, height: y, viewBox: `0 0 ${width} ${y}`, role: "img", "aria-label": text }, ...paths, ...boxes);
  };
  const toggle = (service, open) => {
    const shown = service.body.querySelector(".picture"), button = service.body.querySelector("button");
    if (open === Boolean(shown)) return;
    button.setAttribute("aria-expanded", open);
    if (!open) { shown.remove(); return; }
    const row = service.body.insertRow();
    row.className = "picture";
    const cell = row.insertCell();
    cell.colSpan = 5;
    cell.append(draw(service));
  };

  // Search: every word has to be somewhere in the Service's rows.
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const service of services) {
      service.text ??= service.body.textContent.toLowerCase();
      const shows = words.every((word) => service.text.includes(word)) && (!problems.checked || service.rank < 3);
      service.body.hidden = !shows;
      n += shows;
    }
    count.textContent = n === services.length ? `${n} Services and ports` : `${n} of ${services.length}`;
  };
  const keys = {
    name: (service) => service.name,
    to: (service) => service.body.querySelector("td").textContent,
    ends: (service) => new Set(ways(service.body).flatMap((way) => way.ends).filter((end) => !end.ill).map((end) => end.text)).size,
  };
  const sort = (by, down) => {
    sorted = { by, down };
    const order = new Intl.Collator("en", { numeric: true });
    const rows = services.map((service) => [keys[by](service), service]);
    const compare = by === "ends" ? (a, b) => a - b : order.compare;
    rows.sort(([a, x], [b, y]) => (compare(a, b) || x.at - y.at) * (down ? -1 : 1));
    table.append(...rows.map(([, service]) => service.body));
    for (const head of table.tHead.rows[0].cells) {
      if (head.dataset.sort === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  };

  // What is shown is in the address, so that it can be linked to.
  const remember = () => {
    const at = new URLSearchParams();
    if (search.value) at.set("q", search.value);
    if (problems.checked) at.set("problems", "1");
    if (sorted.by) at.set("sort", (sorted.down ? "-" : "") + sorted.by);
    history.replaceState(null, "", "#" + at);
  };
  const recall = () => {
    const text = location.hash.slice(1);
    if (/^s\d+$/.test(text) && byId(text)) {
      const service = serviceOf.get(byId(text));
      service.body.hidden = false;
      toggle(service, true);
      service.body.scrollIntoView();
      return;
    }
    const at = new URLSearchParams(text);
    if (at.has("q")) search.value = at.get("q");
    if (at.has("problems")) problems.checked = true;
    const by = at.get("sort")?.replace(/^-/, "");
    if (Object.hasOwn(keys, by ?? "")) sort(by, at.get("sort").startsWith("-"));
    filter();
    for (const name of at.getAll("show")) services.filter((service) => service.name === name).forEach((service) => toggle(service, true));
  };

  for (const head of table.tHead.querySelectorAll("[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => { sort(head.dataset.sort, sorted.by === head.dataset.sort && !sorted.down); remember(); });
  }
  for (const { body, name } of services) {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "draw the ways";
    button.setAttribute("aria-expanded", "false");
    button.textContent = name;
    body.querySelector("th").firstChild.replaceWith(button);
  }
  table.addEventListener("click", (event) => {
    const button = event.target.closest("tbody button");
    if (button) toggle(serviceOf.get(button.closest("tbody")), button.getAttribute("aria-expanded") !== "true");
  });
  let timer = 0;
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => { filter(); remember(); }, 120); });
  problems.addEventListener("change", () => { filter(); remember(); });
  addEventListener("hashchange", recall);
  byId("tools").hidden = false;
  filter();
  recall();
})();
