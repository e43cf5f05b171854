// A run that goes on: what is new is asked for, and drawn in the place of what was

const status = document.getElementById("status");
const trouble = document.getElementById("trouble");
const announced = document.getElementById("announced");
const SECOND = 1000;
let version = data.version;
let alarms = data.alarms;

async function asked(path) {
  const answer = await fetch(path);
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function say({ state, words, short = state, trouble: wrong }) {
  const count = alarms.length;
  status.dataset.state = state;
  status.querySelector("span").textContent = words;
  status.querySelector("b")?.remove();
  if (count) status.append(el("b", {}, `${count} alarm${count > 1 ? "s" : ""}`));
  document.title = `${count ? `(${count}) ` : ""}${short} · ${data.title}`;
  if (wrong === undefined) return;
  trouble.textContent = wrong;
  trouble.hidden = !wrong;
}

function announce(words) {
  announced.textContent = words;
}

// ---- what was drawn by the server

let pointer = null;
document.addEventListener("pointermove", (event) => event.isTrusted && (pointer = event));

function drawMarkup(markup) {
  for (const [id, fresh] of Object.entries(markup)) {
    const part = document.getElementById(id);
    const before = [...part.querySelectorAll("details")].map((each) => [each.open, each.querySelector("ul").scrollTop]);
    keepingFocus(part, () => (part.innerHTML = fresh)); // escaped by the server, whose policy lets nothing in it run
    [...part.querySelectorAll("details")].forEach((each, i) => {
      if (!before[i]) return;
      each.open = before[i][0];
      each.querySelector("ul").scrollTop = before[i][1];
    });
  }
  readCharts();
  const under = pointer && document.elementFromPoint(pointer.clientX, pointer.clientY)?.closest("[data-chart]");
  under?.dispatchEvent(new PointerEvent("pointermove", pointer)); // it was being read
}

function show(fresh) {
  data.charts = fresh.charts;
  drawMarkup(fresh.markup);
  if (fresh.heads) drawCourse(fresh.heads);
  const found = fresh.alarms.filter((alarm) => !alarms.includes(alarm));
  if (found.length) announce(found.map((alarm) => `alarm, ${alarm}`).join(" "));
  alarms = fresh.alarms;
  slide(fresh.steps);
}

// ---- the maps of examples: a slider over the steps of which there are some, which follows the newest until it is moved

const slider = document.getElementById("slider");
const knob = el("input", { type: "range", min: 0, step: 1, "aria-label": "step of the maps" });
const play = el("button", { type: "button" }, "play");
const at = el("output", {});
const kept = new Map(); // by step and when it was written
let steps = []; // [step, when it was written]
let shownStep = null;
let playing = null;
slider.append(play, knob, at);

function slide(fresh) {
  const follows = shownStep === null || Number(knob.value) >= steps.length - 1;
  const chosen = steps[Number(knob.value)]?.[0];
  steps = fresh;
  slider.hidden = !steps.length;
  if (!steps.length) return;
  const before = steps.findLastIndex(([step]) => step <= chosen);
  knob.max = steps.length - 1;
  knob.value = follows && !playing ? steps.length - 1 : Math.max(0, before);
  for (const key of kept.keys()) if (!steps.some((each) => String(each) === key)) kept.delete(key);
  showStep();
}

async function mapsOf(each) {
  const key = String(each);
  if (!kept.has(key)) {
    const told = await asked(`api/maps?step=${each[0]}`).catch((error) => (isGone(error) ? Promise.reject(error) : { error }));
    kept.set(key, told);
  }
  if (kept.get(key).error) throw kept.get(key).error;
  return kept.get(key).examples;
}

async function showStep() {
  const each = steps[Number(knob.value)];
  if (String(each) === String(shownStep)) return;
  const words = `step ${each[0].toLocaleString("en")}`;
  knob.setAttribute("aria-valuetext", words);
  shownStep = each;
  try {
    const examples = await mapsOf(each);
    if (shownStep !== each) return; // moved on
    at.textContent = words;
    drawExamples(examples);
  } catch (error) {
    if (shownStep !== each) return;
    at.textContent = words;
    drawExamples([]);
    explorer.firstChild.textContent = isGone(error) ? "The server went before these maps were fetched." : error.message;
  }
}

knob.addEventListener("input", () => {
  stop();
  showStep();
});

function stop() {
  clearInterval(playing);
  playing = null;
  play.textContent = "play";
}

play.addEventListener("click", () => {
  if (playing) return stop();
  if (Number(knob.value) >= steps.length - 1) knob.value = 0;
  play.textContent = "stop";
  playing = setInterval(() => {
    if (Number(knob.value) >= steps.length - 1) return stop();
    knob.value = Number(knob.value) + 1;
    showStep();
  }, 0.4 * SECOND);
  showStep();
});

// One more step's maps, the newest first: playing is smooth then, and all are there when the server goes.
async function fetchOne() {
  const missing = steps.findLast((each) => !kept.has(String(each)));
  if (missing) await mapsOf(missing).catch(() => null); // it is said where that step is chosen
}

// ---- again and again, less often where it takes the server long

const isGone = (error) => error instanceof TypeError;
let next = null; // the timer of the next look; null while one is under way

async function look() {
  next = null;
  const began = performance.now();
  let pause = SECOND;
  try {
    const now = await asked("api/version");
    if (now.version !== version && now.state !== "gone") {
      const fresh = await asked("api/run");
      show(fresh);
      if (now.state === "ended" && status.dataset.state !== "ended") announce(now.words);
      version = fresh.version;
    }
    say(now);
    await fetchOne();
    pause = clamp(10 * (performance.now() - began), SECOND, 30 * SECOND);
  } catch (error) {
    const ended = status.dataset.state === "ended";
    if (!isGone(error)) say({ state: "gone", words: error.message });
    else if (!ended) say({ state: "gone", words: "The server has gone: the training has ended, or was stopped." });
    pause = 5 * SECOND;
  }
  next = setTimeout(look, document.hidden ? 5 * pause : pause);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden || next === null) return;
  clearTimeout(next);
  look();
});
say(data.now);
slide(data.steps);
next = setTimeout(look, SECOND);
