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
  for (const [id, text] of Object.entries(markup)) {
    const part = document.getElementById(id);
    const before = [...part.querySelectorAll("details")].map((each) => [each.open, each.querySelector("ul").scrollTop]);
    keepingFocus(part, () => (part.innerHTML = text)); // escaped by the server, whose policy lets nothing in it run
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

function show(run) {
  data.charts = run.charts;
  drawMarkup(run.markup);
  if (run.heads) drawCourse(run.heads);
  const found = run.alarms.filter((alarm) => !alarms.includes(alarm));
  if (found.length) announce(found.map((alarm) => `alarm, ${alarm}`).join(" "));
  alarms = run.alarms;
  slide(run.steps);
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

function slide(known) {
  const follows = shownStep === null || Number(knob.value) >= steps.length - 1;
  const chosen = steps[Number(knob.value)]?.[0];
  steps = known;
  if (!steps.length) {
    slider.hidden = true;
    drawExamples([]);
    if (status.dataset.state !== "ended") explorer.firstChild.textContent = data.kept;
    return;
  }
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
  shownStep = each;
  explorer.setAttribute("aria-busy", true); // what it shows is of another step
  const { examples, error } = await mapsOf(each).then((examples) => ({ examples }), (error) => ({ error }));
  if (shownStep !== each) return; // moved on
  const words = `step ${each[0].toLocaleString("en")}`;
  at.textContent = words;
  knob.setAttribute("aria-valuetext", words);
  slider.hidden = false;
  drawExamples(examples ?? []);
  if (error) explorer.firstChild.textContent = isGone(error) ? "The server went before these maps were fetched." : error.message;
  explorer.setAttribute("aria-busy", false);
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
  return missing !== undefined;
}

// ---- again and again, less often where it takes the server long, and at once when it is looked at or the run ends

const isGone = (error) => error instanceof TypeError;
let looking = null;
let next = null;

async function fresh() {
  let now = await asked("api/version");
  if (now.version !== version && now.state !== "gone") {
    const run = await asked("api/run");
    now = run.now; // of the records that are drawn
    show(run);
    if (now.state === "ended" && status.dataset.state !== "ended") announce(now.words);
    version = run.version;
  }
  say(now);
  await fetchOne();
}

function gone(error) {
  if (!isGone(error)) say({ state: "gone", words: error.message });
  else if (status.dataset.state !== "ended") say({ state: "gone", words: "The server has gone: the training has ended, or was stopped." });
}

async function look() {
  clearTimeout(next);
  const began = performance.now();
  let pause = 5 * SECOND;
  try {
    await fresh();
    pause = clamp(10 * (performance.now() - began), SECOND, 30 * SECOND);
  } catch (error) {
    gone(error);
  }
  looking = null;
  next = setTimeout(lookOnce, document.hidden ? 5 * pause : pause);
}
const lookOnce = () => (looking ??= look());

async function waitForEnd() {
  try {
    while (!(await asked("api/end")).ended);
    await looking;
    await lookOnce();
    while (await fetchOne());
    await asked("api/end"); // the server waits for this
  } catch (error) {
    setTimeout(waitForEnd, 5 * SECOND);
  }
}

document.addEventListener("visibilitychange", () => document.hidden || lookOnce());
say(data.now);
slide(data.steps);
next = setTimeout(lookOnce, SECOND);
waitForEnd();
