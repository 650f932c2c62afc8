// Models, their replicas, and how far serving them has come.

import { get, id } from "./api.js";
import { empty, h, item, pairs, put, state, table } from "./dom.js";

export async function show(root, [modelId], { signal, every }) {
  if (modelId) return showOne(root, modelId, signal);
  await every(5000, async () => {
    const { data } = await get("/v1/models", signal);
    const rows = data.map((model) => [
      item(`#/models/${id(model.identifier)}`, model.identifier),
      model.model_type,
      state(model.metadata.status || "–"),
      String(model.metadata.replicas ?? "–"),
      model.provider_id,
      model.metadata.base_model || model.provider_resource_id,
    ]);
    const focused = document.activeElement?.getAttribute("href");
    put(root,
      h("h1", {}, "Models"),
      rows.length ? table(["model", "type", "state", "#replicas", "provider", "source"], rows) : empty("No models are registered.", "stack models pull …"),
    );
    if (focused) [...root.querySelectorAll(".item")].find((each) => each.getAttribute("href") === focused)?.focus();
  });
}

async function showOne(root, modelId, signal) {
  const model = await get(`/v1/models/${id(modelId)}`, signal);
  put(root,
    h("h1", {}, model.identifier),
    model.model_type === "llm" ? h("p", {}, item(`#/chat/${id(model.identifier)}`, "Chat with it")) : null,
    pairs([
      ["type", model.model_type],
      ["provider", model.provider_id],
      ["source", model.provider_resource_id],
      ...Object.entries(model.metadata),
    ]),
  );
}
