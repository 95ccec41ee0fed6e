"use strict";

// Lists the operations of openapi.json: FastAPI's own pages load scripts from another host.

function element(name, text) {
  return Object.assign(document.createElement(name), { textContent: text });
}

function operation(method, path, { summary, description, requestBody, responses }) {
  const article = document.createElement("article");
  const heading = element("h2", "");
  heading.append(element("code", `${method.toUpperCase()} ${path}`), ` ${summary}`);
  article.append(heading, element("p", description ?? ""));
  if (requestBody) article.append(element("pre", JSON.stringify(requestBody.content, null, 2)));
  article.append(element("p", `Statuses: ${Object.keys(responses).join(", ")}`));
  return article;
}

async function listOperations() {
  const { paths } = await (await fetch("openapi.json")).json();
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, details] of Object.entries(methods)) {
      document.getElementById("operations").append(operation(method, path, details));
    }
  }
}

const address = new URL("v1/ground", location.href);
document.getElementById("example").textContent =
  `curl ${address} -F image=@street.jpg -F phrases="the woman in the tan jacket" -F phrases="her dog"`;
listOperations();
