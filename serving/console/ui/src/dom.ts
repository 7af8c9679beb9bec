// A page in one function of its data: build the elements anew, then carry only what differs over to the page, so that
// focus, scroll position and images stay. What changed in a [data-live] element lights up once.

type Child = Node | string | number | null | undefined | false;
type Attrs = Record<string, string | number | boolean | null | undefined | Partial<CSSStyleDeclaration>>;

const SVG = "http://www.w3.org/2000/svg";

function make(e: Element, attrs: Attrs, children: Child[]): void {
  for (const [k, v] of Object.entries(attrs)) {
    if (v === null || v === undefined || v === false) continue;
    if (typeof v === "object") Object.assign((e as HTMLElement).style, v); // not the attribute: the page's policy forbids it
    else e.setAttribute(k, v === true ? "" : String(v));
  }
  for (const c of children) if (c !== null && c !== undefined && c !== false) e.append(typeof c === "number" ? String(c) : c);
}

export function h(tag: string, attrs: Attrs = {}, ...children: Child[]): HTMLElement {
  const e = document.createElement(tag);
  make(e, attrs, children);
  return e;
}

export function s(tag: string, attrs: Attrs = {}, ...children: Child[]): SVGElement {
  const e = document.createElementNS(SVG, tag);
  make(e, attrs, children);
  return e;
}

const key = (n: Node): string => (n instanceof Element ? n.nodeName + (n.getAttribute("data-key") ?? "") : n.nodeName);

function flash(e: Element | null): void {
  const live = e?.closest("[data-live]");
  if (!live) return;
  live.classList.remove("changed");
  void (live as HTMLElement).offsetWidth; // restarts the animation
  live.classList.add("changed");
}

export function morph(to: Element, from: Element): void {
  for (const a of [...to.attributes]) if (a.name !== "style" && a.name !== "class" && !from.hasAttribute(a.name)) to.removeAttribute(a.name);
  for (const a of from.attributes) if (a.name !== "style" && a.name !== "class" && to.getAttribute(a.name) !== a.value) to.setAttribute(a.name, a.value);
  const cls = from.getAttribute("class") ?? "";
  if ((to.getAttribute("class") ?? "").replace(/ ?changed$/, "") !== cls) to.setAttribute("class", cls);
  if (to instanceof HTMLElement && from instanceof HTMLElement && to.style.cssText !== from.style.cssText) to.style.cssText = from.style.cssText;

  const keyed = new Map<string, Element>();
  for (const c of to.children) { const k = c.getAttribute("data-key"); if (k) keyed.set(k, c); }
  let at: ChildNode | null = to.firstChild;
  for (const want of [...from.childNodes]) {
    const k = want instanceof Element ? want.getAttribute("data-key") : null;
    const old: ChildNode | null = k ? keyed.get(k) ?? null : at;
    if (old && key(old) === key(want)) {
      if (old !== at) to.insertBefore(old, at);
      else at = old.nextSibling;
      if (old instanceof Element) morph(old, want as Element);
      else if (old.nodeValue !== want.nodeValue) { old.nodeValue = want.nodeValue; flash(to); }
    } else {
      to.insertBefore(want, at);
    }
  }
  while (at) { const next: ChildNode | null = at.nextSibling; at.remove(); at = next; }
}
