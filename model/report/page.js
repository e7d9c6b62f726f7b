"use strict";
(() => {
  const held = JSON.parse(document.getElementById("page-data").textContent);
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const COLOURS = ["#4c78a8", "#e07b39", "#3f9b6e", "#c1503f", "#8064a2", "#b0892f", "#3aa3a8", "#c06c9b", "#6b7a3a", "#7d6b5d", "#5b6bbf", "#a0522d"];
  const colours = new Map();
  const colour = (name) => {
    if (!colours.has(name)) colours.set(name, COLOURS[colours.size % COLOURS.length]);
    return colours.get(name);
  };

  // ---- elements: every text is set as text, never as markup ----
  const make = (tag, cls, said) => {
    const made = document.createElement(tag);
    if (cls) made.className = cls;
    if (said !== undefined && said !== null) made.textContent = said;
    return made;
  };
  const put = (parent, ...children) => { children.forEach((child) => child && parent.appendChild(child)); return parent; };

  // ---- light and dark ----
  const themed = () => {
    const style = getComputedStyle(root);
    return { ink: style.getPropertyValue("--ink").trim(), line: style.getPropertyValue("--line").trim() };
  };
  const drawFigures = () => {
    if (!window.Plotly) return;
    const { ink, line } = themed();
    document.querySelectorAll("[data-figure]").forEach((place) => {
      const figure = held.figures[place.dataset.figure];
      const layout = Object.assign({
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: COLOURS,
        font: { color: ink, size: 12, family: "system-ui, DejaVu Sans, sans-serif" },
        margin: { l: 56, r: 16, t: 12, b: 48 }, legend: { orientation: "h", y: 1.12 }, autosize: true, height: 320,
      }, JSON.parse(JSON.stringify(figure.layout)));
      Object.keys(layout).filter((name) => /^[xy]axis/.test(name)).concat(["xaxis", "yaxis"]).forEach((name) => {
        layout[name] = Object.assign({ gridcolor: line, zerolinecolor: line, automargin: true }, layout[name]);
      });
      window.Plotly.react(place, JSON.parse(JSON.stringify(figure.data)), layout, { responsive: true, displaylogo: false, displayModeBar: false });
    });
  };
  const setTheme = (name) => { root.dataset.theme = name; drawFigures(); };
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", (event) => setTheme(event.matches ? "dark" : "light"));
  window.addEventListener("beforeprint", () => { root.dataset.before = root.dataset.theme; setTheme("light"); });
  window.addEventListener("afterprint", () => setTheme(root.dataset.before || "light"));

  // ---- cards ----
  const cells = (values, draw) => {
    const row = make("div", "row");
    values.forEach((value, i) => row.appendChild(draw(value, i)));
    return row;
  };
  const nameCell = (value, wrong) => {
    const cell = make("span", "cell", value.text);
    cell.title = value.text;
    if (value.on) { cell.classList.add("on"); cell.style.background = colour(value.text); }
    if (wrong) cell.classList.add("wrong");
    return cell;
  };
  const bar = (value, said) => {
    const made = make("span", "bar");
    const fill = make("i");
    fill.style.height = value === null ? "0" : `${Math.max(0, Math.min(1, value)) * 100}%`;
    return put(made, fill, make("b", "", said !== undefined ? said : value === null ? "–" : value.toFixed(2)));
  };
  const overlay = (card) => {
    const { side, seconds } = card.chosen, total = seconds.length;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", `0 0 ${total * side} ${side}`);
    svg.setAttribute("preserveAspectRatio", "none");
    seconds.forEach((tokens, t) => tokens.forEach((token) => {
      const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      rect.setAttribute("x", t * side + (token % side)); rect.setAttribute("y", Math.floor(token / side));
      rect.setAttribute("width", 1); rect.setAttribute("height", 1);
      rect.setAttribute("fill", "#ffd34d"); rect.setAttribute("fill-opacity", ".38");
      rect.setAttribute("stroke", "#ffd34d"); rect.setAttribute("stroke-width", ".04");
      svg.appendChild(rect);
    }));
    return svg;
  };
  const image = (src, cls, alt) => { const made = make("img", cls); made.src = src; made.alt = alt; return made; };
  const clip = (card, tokens) => {
    const made = make("article", "clip");
    const head = put(make("div", "head"), make("span", "name", card.title));
    if (card.split) head.appendChild(make("span", "tag", card.split));
    card.labels.forEach((label) => head.appendChild(make("span", "tag", label)));
    card.notes.forEach((note) => head.appendChild(make("span", "tag noted", note)));
    const said = [];
    if (card.score !== null) said.push(`score ${(100 * card.score).toFixed(0)} %`);
    if (card.confidence !== null) said.push(`confidence ${card.confidence.toFixed(2)}`);
    head.appendChild(make("span", "score", said.join(" · ")));
    made.appendChild(head);
    if (card.question) made.appendChild(make("p", "why", card.question));
    if (card.problem) made.appendChild(make("p", "gone", card.problem));
    const grid = make("div", "seconds");
    const line = (what, content) => put(grid, make("span", "what", what), content);
    const timed = card.strip || card.sound || card.agreement || card.masks.length || card.rows.length;
    if (timed) grid.style.maxWidth = `${84 + 130 * card.times.length}px`;
    if (timed) line("seconds", cells(card.times, (time) => make("span", "cell time", time)));
    if (card.strip) {
      const strip = put(make("div", "strip"), image(card.strip, "", "frames, one a second"));
      if (tokens && card.chosen) strip.appendChild(overlay(card));
      line("frames", strip);
      card.masks.forEach((mask) => line(mask.name, put(make("div", "strip"), image(card.strip, "", "frames"), image(mask.src, "mask", mask.name))));
    } else {
      card.masks.forEach((mask) => line(mask.name, put(make("div", "strip"), image(mask.src, "", mask.name))));
    }
    if (card.sound) line("sound", put(make("div", "sound"), image(card.sound, "", "mel spectrogram")));
    card.rows.forEach((row) => line(row.name, cells(row.cells, (value, i) => nameCell(value, row.wrong && row.wrong[i]))));
    if (card.agreement) line(card.agreement_name, cells(card.agreement, (value) => bar(value)));
    if (grid.children.length) made.appendChild(grid);
    if (card.answers.length) {
      const answers = make("div", "answers");
      card.answers.forEach(([name, p]) => {
        const made = bar(1, p.toFixed(2));
        made.firstChild.style.right = `${100 - 100 * p}%`;
        put(answers, make("span", "", name), made);
      });
      made.appendChild(answers);
      made.appendChild(make("p", "captions", `true answer: ${card.truth}`));
    }
    if (card.captions.length) {
      const captions = make("p", "captions");
      card.captions.forEach(([name, text], i) => {
        if (i) captions.appendChild(make("br"));
        put(captions, make("b", "", `${name}: `), document.createTextNode(text));
      });
      made.appendChild(captions);
    }
    if (card.routing.length) {
      const routing = make("div", "routing");
      card.routing.forEach(([place, weights]) => put(routing, put(make("div"), make("small", "", place), cells(weights, (value, i) => bar(value, `${card.experts[i] || i} ${value === null ? "–" : value.toFixed(2)}`)))));
      made.appendChild(put(make("details"), make("summary", "", "which experts were used"), routing));
    }
    return made;
  };

  // ---- lists: choose, filter, sort ----
  const options = (select, all, values) => {
    select.replaceChildren(new Option(all, ""));
    values.forEach((value) => select.appendChild(new Option(value, value)));
    select.hidden = values.length < 2;
  };
  document.querySelectorAll("[data-cards]").forEach((browser) => {
    const lists = held.lists[browser.dataset.cards];
    const part = (name) => browser.querySelector(name);
    const state = { list: 0, shown: held.first };
    const cardsOf = (list) => list.entries.flatMap((entry) => entry.cards.map((id) => held.cards[id]));
    const fits = (entry) => {
      const cards = entry.cards.map((id) => held.cards[id]);
      const words = part(".search").value.trim().toLowerCase();
      const [label, split, noted] = [".label", ".split", ".noted"].map((name) => part(name).value);
      return cards.some((card) => (!label || card.labels.includes(label)) && (!split || card.split === split)
        && (!noted || card.notes.includes(noted)) && (!words || card.search.includes(words)));
    };
    const sorted = (entries) => {
      const key = part(".sort").value, name = key.replace("-", ""), sign = key.startsWith("-") ? -1 : 1;
      if (!key) return entries;
      const value = (entry) => held.cards[entry.cards[0]][name];
      return entries.slice().sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x < y ? -1 : x > y ? 1 : 0);
      });
    };
    const draw = () => {
      const list = lists[state.list], entries = sorted(list.entries.filter(fits));
      const drawn = entries.slice(0, state.shown).map((entry) => {
        const made = make("div", "entry");
        if (entry.why) made.appendChild(make("p", "why", entry.why));
        entry.cards.forEach((id) => made.appendChild(clip(held.cards[id], part(".tokens").checked)));
        return made;
      });
      part(".list").replaceChildren(...drawn);
      part(".note").textContent = list.note;
      part(".count").textContent = `${entries.length} of ${list.entries.length}`;
      part(".more").hidden = entries.length <= state.shown;
    };
    const choose = (number) => {
      state.list = number; state.shown = held.first;
      browser.querySelectorAll(".tabs button").forEach((tab, i) => tab.setAttribute("aria-selected", String(i === number)));
      const cards = cardsOf(lists[number]);
      const distinct = (values) => [...new Set(values)].sort();
      options(part(".label"), "all classes", distinct(cards.flatMap((card) => card.labels)));
      options(part(".split"), "all splits", distinct(cards.map((card) => card.split)));
      options(part(".noted"), "all notes", distinct(cards.flatMap((card) => card.notes)));
      part(".tick").hidden = !cards.some((card) => card.chosen && card.strip);
      draw();
    };
    lists.forEach((list, i) => {
      const tab = make("button", "", `${list.label} (${list.entries.length})`);
      tab.type = "button"; tab.setAttribute("role", "tab"); tab.dataset.list = list.name;
      tab.addEventListener("click", () => choose(i));
      part(".tabs").appendChild(tab);
    });
    [".search", ".label", ".split", ".noted", ".sort", ".tokens"].forEach((name) => part(name).addEventListener("input", () => { state.shown = held.first; draw(); }));
    part(".more").addEventListener("click", () => { state.shown += held.first; draw(); });
    choose(0);
  });
  setTheme(dark.matches ? "dark" : "light");
})();
