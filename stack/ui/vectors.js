// Vector databases, and a box to query one.

import { get, id, post } from "./api.js";
import { contentText, empty, field, h, item, pairs, problem, put, table } from "./dom.js";

export async function show(root, [databaseId], { signal }) {
  if (databaseId) return showOne(root, databaseId, signal);
  const { data } = await get("/v1/vector-dbs", signal);
  const rows = data.map((each) => [item(`#/vector-dbs/${id(each.identifier)}`, each.identifier), each.embedding_model, String(each.embedding_dimension)]);
  put(root,
    h("h1", {}, "Vector databases"),
    rows.length ? table(["database", "embedding model", "#dimensions"], rows)
      : empty("There are none yet.", 'curl localhost:8321/v1/vector-dbs -H "content-type: application/json" \\\n  -d \'{"vector_db_id": "docs", "embedding_model": "all-MiniLM-L6-v2"}\''),
  );
}

async function showOne(root, databaseId, signal) {
  const database = await get(`/v1/vector-dbs/${id(databaseId)}`, signal);
  const query = h("input", { name: "query", size: 50, required: true });
  const mode = h("select", { name: "mode" }, ["vector", "keyword", "hybrid"].map((each) => h("option", {}, each)));
  const count = h("input", { type: "number", name: "max_chunks", min: 1, max: 100, value: 5 });
  const found = h("div", { "aria-live": "polite" });
  async function ask(event) {
    event.preventDefault();
    put(found, h("p", { class: "quiet" }, "…"));
    const params = { mode: mode.value, max_chunks: count.valueAsNumber || 5 };
    try {
      const began = performance.now();
      const { chunks, scores } = await post("/v1/vector-io/query", { vector_db_id: databaseId, query: query.value, params }, signal);
      const time = h("p", { class: "quiet" }, `${chunks.length} chunks in ${(performance.now() - began).toFixed(0)} ms`);
      put(found, time, ...chunks.map((chunk, at) => chunkOf(chunk, scores[at])));
    } catch (error) {
      put(found, problem(error));
    }
  }
  put(root,
    h("h1", {}, databaseId),
    pairs([["embedding model", database.embedding_model], ["dimensions", database.embedding_dimension], ["provider", database.provider_id]]),
    h("h2", {}, "Query"),
    h("form", { class: "row", submit: ask }, field("query", query), field("mode", mode), field("chunks", count), h("button", {}, "Ask")),
    found,
  );
  query.focus();
}

function chunkOf(chunk, score) {
  return h("div", { class: "message" },
    h("span", { class: "who" }, `score ${score.toPrecision(4)} · ${JSON.stringify(chunk.metadata)}`),
    contentText(chunk.content));
}
