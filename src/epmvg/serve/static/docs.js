"use strict";

// Writes openapi.json out for people: every operation with its body, its answer and its faults.

const FORMATS = { binary: "file", byte: "base64" };

function element(name, text = "", ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

/** A schema as the JSON it describes, one line a field. */
function sketch(schema, parts, indent = "") {
  if (schema.$ref) return sketch(parts[schema.$ref.split("/").at(-1)], parts, indent);
  if (schema.anyOf) return schema.anyOf.map((choice) => sketch(choice, parts, indent)).join(`\n${indent}or `);
  if (schema.prefixItems) return `[${schema.prefixItems.map((item) => sketch(item, parts, indent)).join(", ")}]`;
  if (schema.type === "array") return `[${sketch(schema.items, parts, indent)}, ...]`;
  if (schema.type !== "object" || !schema.properties) return FORMATS[schema.format] ?? schema.type ?? "anything";
  const deeper = `${indent}  `;
  const fields = Object.entries(schema.properties).map(([name, field]) => {
    const note = field.description ? `  (${field.description})` : "";
    return `${deeper}${JSON.stringify(name)}: ${sketch(field, parts, deeper)}${note}`;
  });
  return `{\n${fields.join("\n")}\n${indent}}`;
}

function operation(method, path, told, parts) {
  const title = element("h2");
  const badge = element("span", method.toUpperCase());
  badge.className = "method";
  title.append(badge, element("code", path), element("span", ` ${told.summary}`));
  const article = element("article", "", title);
  if (told.description) article.append(element("p", told.description));
  for (const [kind, { schema }] of Object.entries(told.requestBody?.content ?? {})) {
    article.append(element("h3", `Body, ${kind}`), element("pre", sketch(schema, parts)));
  }
  const schema = told.responses["200"]?.content?.["application/json"]?.schema;
  if (schema) article.append(element("h3", "Answer"), element("pre", sketch(schema, parts)));
  const faults = Object.entries(told.responses).filter(([status]) => status >= 400);
  if (faults.length) {
    const list = element("dl");
    for (const [status, { description }] of faults) list.append(element("dt", status), element("dd", description));
    article.append(element("h3", "Faults"), list);
  }
  return article;
}

async function write() {
  const told = await (await fetch("openapi.json")).json();
  const articles = Object.entries(told.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => operation(method, path, one, told.components.schemas)),
  );
  document.getElementById("operations").replaceChildren(...articles);
}

const here = new URL("v1/ground", location.href);
document.getElementById("example").textContent =
  `curl ${here} \\\n  -F image=@street.jpg \\\n  -F phrases="the woman in the tan jacket" \\\n  -F phrases="her dog"`;
write();
