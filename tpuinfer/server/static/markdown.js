// A small, safe part of Markdown: text becomes DOM nodes, never HTML.
//
// Blocks: fenced code, headings, lists, paragraphs. Inline: `code`, **bold**, *italic*.
// Whatever else there is, tags among it, stays as the text it is.

const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBER = /^\s*(\d{1,9})[.)]\s+(.*)$/;
const INLINE = /(`+)(.+?)\1(?!`)|\*\*(?=\S)(.+?)\*\*|\*(?=[^\s*])([^*\n]+?)\*(?!\w)/gs;

/** The blocks of a text: {kind: "code" | "heading" | "bullets" | "numbers" | "paragraph", ...}. */
export function blocks(text) {
  const found = [];
  const lines = text.split("\n");
  for (let at = 0; at < lines.length;) {
    const fence = FENCE.exec(lines[at]);
    if (fence) {
      const [code, next] = fenced(lines, at + 1, fence[1]);
      found.push({kind: "code", language: fence[2], text: code});
      at = next;
    } else {
      addLine(found, lines[at]);
      at += 1;
    }
  }
  return found.filter((block) => block.kind !== "gap");
}

/** The lines up to the closing fence, or to the end while the answer is still on its way. */
function fenced(lines, start, mark) {
  const closing = new RegExp(`^\\s*${mark[0]}{${mark.length},}\\s*$`);
  let end = start;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  return [lines.slice(start, end).join("\n"), end + 1];
}

function addLine(found, line) {
  const last = found.at(-1);
  const heading = HEADING.exec(line);
  const bullet = BULLET.exec(line);
  const number = NUMBER.exec(line);
  if (!line.trim()) {
    found.push({kind: "gap"});
  } else if (heading) {
    found.push({kind: "heading", text: heading[2]});
  } else if (bullet) {
    addItem(found, "bullets", bullet[1], 1);
  } else if (number) {
    addItem(found, "numbers", number[2], Number(number[1]));
  } else if (last?.kind === "paragraph") {
    last.text += "\n" + line;
  } else if (last?.items && /^\s/.test(line)) {
    last.items[last.items.length - 1] += "\n" + line.trim();
  } else {
    found.push({kind: "paragraph", text: line});
  }
}

/** A list goes on across one blank line, as models write it. */
function addItem(found, kind, text, start) {
  const before = found.at(-1)?.kind === "gap" ? found.at(-2) : found.at(-1);
  if (before?.kind === kind) {
    if (found.at(-1).kind === "gap") found.pop();
    before.items.push(text);
  } else {
    found.push({kind, items: [text], start});
  }
}

/** Text with its inline marks as nodes. */
export function inline(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(document.createTextNode(text.slice(at, match.index)));
    nodes.push(marked(match));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(document.createTextNode(text.slice(at)));
  return nodes;
}

function marked([, ticks, code, bold, italic]) {
  if (ticks) return element("code", [code]);
  return bold === undefined ? element("em", inline(italic)) : element("strong", inline(bold));
}

const shown = new WeakMap();

/**
 * Show `text` in `parent`. Blocks that are as they were keep their nodes, so that a selection
 * survives while the rest streams in.
 */
export function render(parent, text) {
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const source = JSON.stringify(block);
    const present = parent.children[index];
    if (present && shown.get(present) === source) return;
    const node = built(block);
    shown.set(node, source);
    if (present) present.replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > wanted.length) parent.lastElementChild.remove();
}

function built(block) {
  switch (block.kind) {
    case "code": return codeBlock(block);
    case "heading": return element("h3", inline(block.text));
    case "paragraph": return element("p", inline(block.text));
  }
  const list = element(block.kind === "bullets" ? "ul" : "ol");
  if (block.kind === "numbers") list.start = block.start;
  list.append(...block.items.map((item) => element("li", inline(item))));
  return list;
}

function codeBlock({language, text}) {
  const copy = element("button", ["Copy"]);
  copy.type = "button";
  copy.dataset.copy = "code";
  copy.setAttribute("aria-label", "Copy code");
  const bar = element("div", [element("span", [language || "text"]), copy]);
  bar.className = "bar";
  const code = element("pre", [element("code", [text])]);
  code.tabIndex = 0;
  const figure = element("figure", [bar, code]);
  figure.className = "code";
  return figure;
}

/** A new element with nodes or strings in it; a string is text, whatever it looks like. */
export function element(name, children = []) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
