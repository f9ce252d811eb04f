// Settings: fields of a form, kept as the strings that were typed, and what of them a request gets.

const NUMBERS = [
  "temperature", "max_tokens", "top_p", "top_k", "min_p", "seed",
  "presence_penalty", "frequency_penalty", "repetition_penalty",
];
const OWN = ["model", "messages", "stream", "stream_options", "n"];

/**
 * The fields that a request gets under the API's own names; what is empty is not sent.
 * Raises Error with a readable line when the further fields are no JSON object.
 */
export function requestFields(settings) {
  const fields = {};
  for (const name of NUMBERS) {
    const typed = (settings[name] ?? "").trim();
    if (typed) fields[name] = Number(typed);
  }
  return {...fields, ...furtherFields(settings.extra ?? "")};
}

function furtherFields(text) {
  if (!text.trim()) return {};
  let fields;
  try {
    fields = JSON.parse(text);
  } catch (error) {
    throw new Error(`Further fields: not JSON (${error.message})`);
  }
  if (typeof fields !== "object" || fields === null || Array.isArray(fields)) {
    throw new Error("Further fields: must be a JSON object, such as {\"stop\": [\"\\n\"]}");
  }
  const own = OWN.find((name) => name in fields);
  if (own) throw new Error(`Further fields: ${own} is set by this page, leave it out`);
  return fields;
}

/** How many settings differ from the defaults. */
export function changed(settings) {
  return Object.values(settings).filter((value) => value.trim()).length;
}

/**
 * Tie the form in `dialog` to `settings`, a plain object that is changed in place.
 * The dialog does not close on a value that cannot be sent; `onChange` hears of every other one.
 */
export function settingsForm(dialog, settings, onChange) {
  const form = dialog.querySelector("form");
  const fields = [...form.elements].filter((field) => field.name);
  const show = () => fields.forEach((field) => {
    field.value = settings[field.name] ?? "";
    check(field);
  });
  form.addEventListener("input", ({target}) => {
    check(target);
    if (!target.validity.valid) return;
    settings[target.name] = target.value;
    onChange();
  });
  form.querySelector("#defaults").addEventListener("click", () => {
    fields.forEach((field) => settings[field.name] = "");
    show();
    onChange();
  });
  dialog.addEventListener("cancel", (event) => {
    if (!form.reportValidity()) event.preventDefault();
  });
  show();
}

function check(field) {
  if (field.name !== "extra") return;
  let problem = "";
  try {
    furtherFields(field.value);
  } catch (error) {
    problem = error.message;
  }
  field.setCustomValidity(problem);
}
