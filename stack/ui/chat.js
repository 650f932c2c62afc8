// A playground: a conversation with a model, streamed.

import { events, get, id } from "./api.js";
import { contentText, empty, field, h, problem, put } from "./dom.js";

const talks = new Map(); // model -> its messages, while the page is open

export async function show(root, [chosen], { signal }) {
  const { data } = await get("/v1/models", signal);
  const names = data.filter((model) => model.model_type === "llm").map((model) => model.identifier);
  if (!names.length) return put(root, h("h1", {}, "Chat"), empty("No model answers chats here. Serve one:", "stack up"));
  const model = names.includes(chosen) ? chosen : names[0];
  if (!talks.has(model)) talks.set(model, []);
  const messages = talks.get(model);

  const choice = h("select", { change: () => (location.hash = `#/chat/${id(choice.value)}`) }, names.map((name) => h("option", { selected: name === model }, name)));
  const system = h("input", { name: "system", placeholder: "none" });
  const temperature = h("input", { type: "number", name: "temperature", min: 0, max: 2, step: 0.1, value: 0.7 });
  const topP = h("input", { type: "number", name: "top_p", min: 0.01, max: 1, step: 0.01, value: 0.95 });
  const maxTokens = h("input", { type: "number", name: "max_tokens", min: 1, step: 1, value: 256 });
  const said = h("textarea", { name: "message", rows: 3, placeholder: "Enter sends, Shift-Enter is a new line" });
  const send = h("button", { type: "submit" }, "Send");
  const stop = h("button", { type: "button", disabled: true, click: () => running?.abort() }, "Stop");
  const clear = h("button", { type: "button" }, "Clear");
  const log = h("div", { "aria-live": "polite" }, messages.map(bubble));
  let running = null;

  function body() {
    const strategy = temperature.valueAsNumber > 0
      ? { type: "top_p", temperature: temperature.valueAsNumber, top_p: topP.valueAsNumber || 1 }
      : { type: "greedy" };
    const instructions = system.value.trim() ? [{ role: "system", content: system.value.trim() }] : [];
    return {
      model_id: model,
      messages: [...instructions, ...messages],
      sampling_params: { strategy, max_tokens: maxTokens.valueAsNumber || 256 },
      stream: true,
    };
  }

  async function ask(event) {
    event.preventDefault();
    const text = said.value.trim();
    if (!text || running) return;
    said.value = "";
    messages.push({ role: "user", content: text });
    const request = body();
    const answer = { role: "assistant", content: "", stop_reason: "end_of_turn" };
    const shown = bubble(answer);
    const facts = h("p", { class: "quiet" });
    log.append(bubble(messages.at(-1)), shown, facts);
    running = new AbortController();
    signal.addEventListener("abort", () => running?.abort());
    [send.disabled, stop.disabled] = [true, false];
    const began = performance.now();
    let first = null;
    let trace = null;
    let usage = {};
    try {
      const stream = events("/v1/inference/chat-completion", request, running.signal, (headers) => (trace = headers.get("x-trace-id")));
      for await (const chunk of stream) {
        const { delta } = chunk.event;
        if (delta.type === "text") answer.content += delta.text;
        else if (typeof delta.tool_call === "object") answer.content += JSON.stringify(delta.tool_call);
        if (first === null && answer.content) first = performance.now();
        for (const { metric, value } of chunk.metrics || []) usage[metric] = value;
        shown.lastChild.textContent = answer.content;
      }
    } catch (error) {
      if (running.signal.aborted) facts.append("stopped ");
      else log.append(problem(error));
    }
    if (answer.content) messages.push(answer);
    const seconds = (performance.now() - (first ?? began)) / 1000;
    const tokens = usage.completion_tokens;
    if (tokens) facts.append(`${tokens} tokens, ${(Math.max(tokens - 1, 1) / seconds).toFixed(1)} a second, the first after ${((first - began) / 1000).toFixed(2)} s `);
    if (trace) facts.append(h("a", { href: `#/traces/${id(trace)}` }, "trace"));
    [running, send.disabled, stop.disabled] = [null, false, true];
    facts.scrollIntoView({ block: "nearest" });
  }

  clear.addEventListener("click", () => {
    messages.length = 0;
    put(log);
  });
  said.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
    if (event.key === "Escape") running?.abort();
  });
  document.querySelector("main").addEventListener("stop", (event) => {
    if (!running) return;
    running.abort();
    event.preventDefault();
  }, { signal });

  put(root,
    h("h1", {}, "Chat"),
    h("form", { class: "row", submit: (event) => event.preventDefault() },
      field("model", choice), field("system prompt", system), field("temperature", temperature), field("top p", topP), field("max tokens", maxTokens)),
    log,
    h("form", { submit: ask }, field("message", said, true), h("p", {}, send, " ", stop, " ", clear)),
  );
  said.focus();
}

function bubble({ role, content }) {
  return h("div", { class: `message ${role}` }, h("span", { class: "who" }, role), h("span", {}, contentText(content)));
}
