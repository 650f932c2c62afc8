// Requests to the server that this page came from.

const KEY = "stack-api-key"; // in this browser, if the server asks for one
const dialog = document.querySelector("#api-key");
let asking = null;

// As fetch does it, with the key; of a server that wants one, once someone has written it.
export async function ask(path, options) {
  const key = localStorage.getItem(KEY);
  const headers = key ? { ...options.headers, authorization: `Bearer ${key}` } : options.headers;
  const response = await fetch(path, { ...options, headers });
  if (response.status !== 401 || !response.headers.has("www-authenticate")) return response;
  if (key === localStorage.getItem(KEY)) {
    asking ??= written(key ? "The server does not know the key." : "");
    const given = await asking;
    asking = null;
    if (!given) return response;
  }
  return ask(path, options);
}

// What is written into the dialog, which is kept; empty: nothing.
async function written(problem) {
  dialog.querySelector("p").textContent = problem;
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  const field = dialog.querySelector("input");
  const key = dialog.returnValue === "use" ? field.value.trim() : "";
  field.value = "";
  if (key) localStorage.setItem(KEY, key);
  return key;
}

async function answer(response) {
  if (response.ok) return response;
  const text = await response.text();
  let said = text;
  try {
    const { detail, title } = JSON.parse(text);
    said = detail || title || text;
  } catch {
    // not JSON: a proxy's page, perhaps
  }
  throw new Error(`${response.status}: ${said || response.statusText}`);
}

async function request(method, path, body, signal) {
  const headers = body === undefined ? { traceparent: unrecorded() } : { "content-type": "application/json" };
  try {
    return await answer(await ask(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal }));
  } catch (error) {
    if (error instanceof TypeError) throw new Error("The server does not answer. Is it still running?");
    throw error;
  }
}

// What the page reads is not recorded: the list of traces would be full of it.
function unrecorded() {
  const digits = (count) => Array.from(crypto.getRandomValues(new Uint8Array(count / 2)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `00-${digits(32)}-${digits(16)}-00`;
}

export async function get(path, signal) {
  return (await request("GET", path, undefined, signal)).json();
}

export async function post(path, body, signal) {
  return (await request("POST", path, body, signal)).json();
}

// Server-sent events as objects; `began` is called with the response's headers.
export async function* events(path, body, signal, began = () => {}) {
  const response = await request("POST", path, body, signal);
  began(response.headers);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.detail || event.error.message || JSON.stringify(event.error));
      yield event;
    }
  }
}

export const id = encodeURIComponent;
