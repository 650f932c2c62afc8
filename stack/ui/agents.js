// Agents, their sessions, and the steps of each turn.

import { get, id } from "./api.js";
import { contentText, duration, empty, h, item, moment, pairs, put, table } from "./dom.js";

export async function show(root, [agentId, sessions, sessionId], { signal }) {
  if (!agentId) return showAll(root, signal);
  if (sessions === "sessions" && sessionId) return showSession(root, agentId, sessionId, signal);
  return showAgent(root, agentId, signal);
}

async function showAll(root, signal) {
  const { data } = await get("/v1/agents", signal);
  const rows = data.reverse().map((agent) => [
    item(`#/agents/${id(agent.agent_id)}`, agent.agent_id),
    agent.agent_config.model,
    (agent.agent_config.toolgroups || []).map((group) => group.name || group).join(", ") || "–",
    moment(agent.created_at),
  ]);
  put(root,
    h("h1", {}, "Agents"),
    rows.length ? table(["agent", "model", "tools", "created"], rows) : empty("There are no agents yet.", "stack agent agent.yaml"),
  );
}

async function showAgent(root, agentId, signal) {
  const [agent, { data }] = await Promise.all([
    get(`/v1/agents/${id(agentId)}`, signal),
    get(`/v1/agents/${id(agentId)}/sessions`, signal),
  ]);
  const rows = data.reverse().map((session) => [
    item(`#/agents/${id(agentId)}/sessions/${id(session.session_id)}`, session.session_name),
    moment(session.started_at),
  ]);
  put(root,
    h("h1", {}, agentId),
    pairs([["agent", agentId], ...Object.entries(agent.agent_config)]),
    h("h2", {}, "Sessions"),
    rows.length ? table(["session", "began"], rows) : empty("Nobody has talked to it yet."),
  );
}

async function showSession(root, agentId, sessionId, signal) {
  const session = await get(`/v1/agents/${id(agentId)}/session/${id(sessionId)}`, signal);
  put(root,
    h("h1", {}, session.session_name),
    h("p", { class: "quiet" }, h("a", { href: `#/agents/${id(agentId)}` }, "agent"), ` · ${sessionId} · `, moment(session.started_at)),
    session.turns.length ? session.turns.map(turnOf) : empty("No turn yet."),
  );
}

function turnOf(turn) {
  return h("section", {},
    turn.input_messages.map((message) => bubble(message.role, contentText(message.content))),
    turn.steps.map(stepOf),
    bubble("assistant", contentText(turn.output_message.content)),
    h("p", { class: "quiet" },
      moment(turn.started_at), ` · ${turn.completed_at ? took(turn) : "not ended"} · `,
      h("a", { href: `#/traces/where/turn_id/eq/${id(turn.turn_id)}`, class: "item" }, "traces")));
}

function bubble(role, text) {
  return h("div", { class: `message ${role}` }, h("span", { class: "who" }, role), text);
}

function took({ started_at, completed_at }) {
  return started_at && completed_at ? duration(Date.parse(completed_at) - Date.parse(started_at)) : "–";
}

function stepOf(step) {
  return h("div", { class: "step" }, h("span", { class: "who" }, `${step.step_type.replace("_", " ")} · ${took(step)}`), bodyOf(step));
}

function bodyOf(step) {
  switch (step.step_type) {
    case "inference": {
      const { content, tool_calls: calls } = step.model_response;
      return [contentText(content), (calls || []).map((call) => h("pre", {}, `calls ${call.tool_name}(${call.arguments_json || JSON.stringify(call.arguments)})`))];
    }
    case "tool_execution":
      return step.tool_responses.map((response) => h("pre", {}, `${response.tool_name}: ${contentText(response.content)}`));
    case "shield_call":
      return step.violation ? h("p", { class: "error" }, step.violation.user_message || step.violation.violation_level) : "nothing found";
    default:
      return h("pre", {}, contentText(step.inserted_context));
  }
}
