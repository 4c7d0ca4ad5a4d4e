// One dialog for all that has to be asked.

const $ = (id) => document.getElementById(id);

/**
 * Ask something.
 *
 * @param asked `title`, `text`, `yes` (what the button says), and for an input `label`, `value`,
 *   `secret`, `check` (value → why it will not do, or ""; or a promise of that); `grave` if it cannot be
 *   taken back
 * @returns the input, or true; null if it was cancelled
 */
export function ask({ title, text = "", yes, label, value = "", secret, check, grave = false }) {
  const dialog = $("dialog");
  const input = $("dialog-input");
  const form = dialog.querySelector("form");
  $("dialog-title").textContent = title;
  $("dialog-text").textContent = text;
  $("dialog-yes").textContent = yes;
  $("dialog-yes").classList.toggle("grave", grave);
  $("dialog-wrong").textContent = "";
  $("dialog-field").hidden = !label;
  $("dialog-label").textContent = label ?? "";
  input.type = secret ? "password" : "text";
  input.required = Boolean(label);
  input.value = value;
  const given = () => (secret ? input.value : input.value.trim());
  dialog.showModal();
  if (label) input.select();
  else $("dialog-no").focus(); // Enter alone deletes nothing
  return new Promise((resolve) => {
    let answer = null;
    const submit = async (event) => {
      event.preventDefault();
      if (label && !given()) return;
      const why = label && check ? await Promise.resolve(check(given())).catch(messageOf) : "";
      $("dialog-wrong").textContent = why;
      if (why) return;
      answer = label ? given() : true;
      dialog.close();
    };
    const cancel = () => dialog.close();
    const close = () => {
      form.removeEventListener("submit", submit);
      $("dialog-no").removeEventListener("click", cancel);
      input.value = "";
      resolve(answer);
    };
    form.addEventListener("submit", submit);
    $("dialog-no").addEventListener("click", cancel);
    dialog.addEventListener("close", close, { once: true });
  });
}

const messageOf = (error) => error.message;
