// Polls v1/load and draws what changed since the last poll: rates and means are of that second, not of all time.
"use strict";
const POLL_MS = 1000, BOX = { width: 150, height: 54, gapX: 24, gapY: 16 };
const SVG = "http://www.w3.org/2000/svg";
const by = (id) => document.getElementById(id);
const number = (value, digits) => (Number.isFinite(value) ? value.toFixed(digits) : "–");

function element(parent, name, attributes, text) {
  const made = parent.namespaceURI === SVG ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

const shortened = (text) => (text.length > 22 ? text.slice(0, 21) + "…" : text);

function columns(graph) {
  const depth = Object.fromEntries(graph.services.map((service) => [service.name, 0]));
  for (let round = 0; round < graph.services.length; round++)
    for (const [source, target] of graph.edges) depth[target] = Math.max(depth[target], depth[source] + 1);
  const found = [];
  for (const service of graph.services) (found[depth[service.name]] ??= []).push(service.name);
  return found;
}

function drawGraph(graph) {
  const svg = by("graph"), place = {}, stacks = columns(graph);
  const tallest = Math.max(...stacks.map((stack) => stack.length));
  const width = stacks.length * (BOX.width + BOX.gapX), height = tallest * (BOX.height + BOX.gapY);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  stacks.forEach((stack, x) => stack.forEach((name, y) => {
    const top = (height - stack.length * (BOX.height + BOX.gapY)) / 2;
    place[name] = [x * (BOX.width + BOX.gapX) + BOX.gapX / 2, top + y * (BOX.height + BOX.gapY) + BOX.gapY / 2];
  }));
  for (const [source, target] of graph.edges) {
    const [x1, y1] = place[source], [x2, y2] = place[target], middle = BOX.height / 2;
    element(svg, "line", { x1: x1 + BOX.width, y1: y1 + middle, x2, y2: y2 + middle });
  }
  const boxes = {};
  for (const [name, [x, y]] of Object.entries(place)) {
    const box = element(svg, "rect", { x, y, width: BOX.width, height: BOX.height, rx: 6, fill: "transparent" });
    element(svg, "title", {}, name);
    const [module, lams] = name.split("@"), centre = x + BOX.width / 2;
    element(svg, "text", { x: centre, y: y + 16 }, shortened(module));
    element(svg, "text", { x: centre, y: y + 31 }, shortened(lams ?? "all LAMs"));
    boxes[name] = { box, text: element(svg, "text", { x: centre, y: y + 47 }, "") };
  }
  return boxes;
}

function row(body, cells) {
  const line = element(body, "tr", {});
  cells.forEach((cell) => element(line, "td", typeof cell === "string" ? { class: "text" } : {}, cell.text ?? cell));
}

function show(graph, boxes, before, now) {
  const seconds = now.uptime_s - before.uptime_s;
  by("services").replaceChildren();
  for (const { name, lams, nodes } of graph.services) {
    const old = before.services[name] ?? { passes: 0, seconds: 0 }, own = now.services[name] ?? old;
    const passes = own.passes - old.passes, busy = own.seconds - old.seconds, share = busy / seconds;
    boxes[name].box.setAttribute("fill", `rgba(31, 119, 180, ${Math.min(share, 1)})`);
    boxes[name].text.textContent = passes ? `${number((1e3 * busy) / passes, 2)} ms` : "idle";
    const figures = [number(passes / seconds, 1), number((1e3 * busy) / passes, 2), number(100 * share, 1) + " %"];
    row(by("services"), [name, nodes.join(", ") || now.node, lams.join(", "), ...figures.map((text) => ({ text }))]);
  }
  by("requests").replaceChildren();
  for (const [lam, own] of Object.entries(now.requests)) {
    const old = before.requests[lam] ?? { count: 0, seconds: 0 }, count = own.count - old.count;
    const figures = [number(count / seconds, 1), number((1e3 * (own.seconds - old.seconds)) / count, 1)];
    row(by("requests"), [lam, ...[...figures, own.answered, own.refused].map((text) => ({ text: String(text) }))]);
  }
  const batches = now.batches.count - before.batches.count, links = now.batches.links - before.batches.links;
  const busy = (now.batches.seconds - before.batches.seconds) / seconds;
  by("load").replaceChildren();
  const figures = {
    "links a second": number(links / seconds, 1), "links a batch": number(links / batches, 1),
    "worker busy": number(100 * busy, 0) + " %", "links waiting": `${now.queued_links} of ${now.max_queued_links}`,
    "sessions": now.sessions, "since start": number(now.uptime_s, 0) + " s",
  };
  for (const [about, value] of Object.entries(figures)) {
    const pair = element(by("load"), "div", {});
    element(pair, "dt", {}, about);
    element(pair, "dd", {}, value);
  }
}

const ask = async (path) => (await fetch(path, { cache: "no-store" })).json();

async function main() {
  let before = null, drawn = "", graph = null, boxes = null;
  for (;;) {
    try {
      const now = await ask("v1/load"), found = await ask("v1/graph");
      if (JSON.stringify(found) !== drawn) {
        drawn = JSON.stringify(found);
        graph = found;
        boxes = drawGraph(graph);
        before = null;
      }
      if (before !== null && now.uptime_s > before.uptime_s) show(graph, boxes, before, now);
      before = now;
      by("state").textContent = now.draining ? "about to end: no new requests" : "takes requests";
      by("state").className = "";
    } catch (error) {
      by("state").textContent = "no answer from the server";
      by("state").className = "lost";
      before = null;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

main();
