// The account page. What the server says is set as text, never as markup.

const byId = (id) => document.getElementById(id);

// What links in mails open: the section of that name, and what its form sends with the secret.
const links = {
  verify: {
    path: "email-verifications",
    secret: "secret",
    done: "Your email is verified.",
  },
  reset: {
    path: "password-resets/complete",
    secret: "secret",
    done: "Your password is set. Sign in with it.",
  },
  invitation: {
    path: "accounts",
    secret: "invitation",
    done: "Your account is made. Sign in.",
  },
  first: {
    path: "first-administrator",
    secret: "secret",
    done: "The administrator is made. Sign in.",
  },
  organisation: {
    path: "organisation-invitations/accept",
    secret: "secret",
    done: "You are a member of the organisation.",
    needsSession: "Sign in to accept the invitation.",
  },
};

// Other services to sign in with, and why it did not work there.
const services = { github: "GitHub", openid: "single sign-on" };
const refusals = {
  cancelled: "You were not signed in: it was cancelled.",
  "begin-again": "You were not signed in: it took too long, or was begun elsewhere. Try again.",
  unavailable: "The other service does not answer. Try again later, or sign in otherwise.",
  "not-linked": "No account here is linked to yours there. Sign in otherwise, and link it here.",
  "no-email": "The other service tells no email of yours that it has verified.",
  name: "Your name there cannot be had here. Make an account with another one, and link it here.",
  email: "Your email belongs to an account here already. Sign in to it, and link it here.",
  "linked-elsewhere": "You are linked to another account here.",
  "signed-out": "Sign in first, and link it then.",
};

async function call(method, path, body) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["Content-Type"] = "application/json";
  const response = await fetch(`/api/v1/${path}`, {
    method,
    headers,
    body: body && JSON.stringify(body),
    cache: "no-store",
  });
  const text = await response.text();
  if (response.ok) return text ? JSON.parse(text) : null;
  throw Object.assign(new Error(sentence(text, response)), { status: response.status });
}

// What a problem (RFC 9457) says; what stands in front of the registry may answer otherwise.
function sentence(text, response) {
  try {
    const problem = JSON.parse(text);
    if (problem.detail || problem.title) return problem.detail || problem.title;
  } catch {
    // not JSON
  }
  return `The registry answered ${response.status} ${response.statusText}.`;
}

function say(text, isError = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("error", isError);
}

// The link that was opened, until it is used: it stays in view whatever the session turns out to be.
let opened = null;

function show(id) {
  const wanted = id === "signed-out" ? links[opened?.kind]?.needsSession : undefined;
  if (wanted) say(wanted);
  const shown = wanted ? id : opened?.kind ?? id;
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== shown;
}

// Do what a button asks for, once at a time, and say what went wrong.
function on(element, event, work) {
  const buttons = element.matches("form") ? element.querySelectorAll("button") : [element];
  element.addEventListener(event, async (happened) => {
    happened.preventDefault();
    for (const button of buttons) button.disabled = true;
    say("");
    try {
      await work(element);
    } catch (error) {
      say(explained(error), true);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  });
}

function explained(error) {
  switch (error.name) {
    case "NotAllowedError":
      return "No passkey was used: it was cancelled, or took too long.";
    case "InvalidStateError":
      return "This device has a passkey for your account already.";
    default:
      return error.message;
  }
}

const entered = (form) => Object.fromEntries(new FormData(form));

// Note the link in the address, whose secret then leaves the address and the history.
function openLink() {
  const [kind, secret] = [...new URLSearchParams(location.hash.slice(1))][0] ?? [];
  if (!Object.hasOwn(links, kind ?? "")) return;
  history.replaceState(null, "", location.pathname);
  opened = { kind, secret };
}

// Note why the other service sent the browser back, which then leaves the address.
function arrive() {
  const refusal = new URLSearchParams(location.search).get("error");
  if (refusal === null) return;
  history.replaceState(null, "", location.pathname + location.hash);
  say(refusals[refusal] ?? "You were not signed in.", true);
}

async function refresh() {
  let session;
  try {
    session = await call("GET", "session");
  } catch (error) {
    show("signed-out");
    if (error.status !== 401) throw error;
    const { providers } = await call("GET", "sign-in");
    byId("providers").replaceChildren(...providers.map(signInWith));
    return;
  }
  byId("who").textContent = session.name;
  byId("passkeys").replaceChildren(...(await call("GET", "passkeys")).items.map(entry));
  await refreshIdentities();
  show("signed-in");
}

async function refreshIdentities() {
  const [{ providers }, identities] = await Promise.all([
    call("GET", "sign-in"),
    call("GET", "account/identities"),
  ]);
  byId("elsewhere").hidden = providers.length + identities.items.length === 0;
  byId("identities").replaceChildren(...identities.items.map(identityEntry));
  byId("linkable").replaceChildren(...providers.map(linkWith));
}

function button(text, work) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  on(made, "click", work);
  return made;
}

function signInWith(provider) {
  return button(`Sign in with ${services[provider]}`, () => {
    location.assign(`/api/v1/sign-in/${provider}`);
  });
}

function linkWith(provider) {
  return button(`Link ${services[provider]}`, async () => {
    const departure = await call("POST", `sign-in/${provider}/link`);
    location.assign(departure.location);
  });
}

function identityEntry(identity) {
  const name = document.createElement("div");
  const details = document.createElement("small");
  details.textContent = `${identity.subject} at ${identity.issuer}`;
  name.append(services[identity.provider], details);
  const item = document.createElement("li");
  item.append(
    name,
    button("Unlink", async () => {
      await call("DELETE", `account/identities/${encodeURIComponent(identity.id)}`);
      await refresh();
    }),
  );
  return item;
}

function entry(passkey) {
  const day = (time) => new Date(time).toLocaleDateString();
  const details = document.createElement("small");
  details.textContent =
    `added ${day(passkey.created_at)}, ` +
    (passkey.used_at ? `used ${day(passkey.used_at)}` : "not used yet");
  const name = document.createElement("div");
  name.append(passkey.name, details);
  const remove = document.createElement("button");
  remove.textContent = "Remove";
  remove.setAttribute("aria-label", `Remove ${passkey.name}`);
  on(remove, "click", async () => {
    if (!confirm(`Remove the passkey “${passkey.name}”?`)) return;
    await call("DELETE", `passkeys/${encodeURIComponent(passkey.id)}`);
    await refresh();
    say("The passkey is removed. Delete it from your device too.");
  });
  const item = document.createElement("li");
  item.append(name, remove);
  return item;
}

function needPasskeys() {
  if (!window.PublicKeyCredential?.parseCreationOptionsFromJSON) {
    throw new Error("This browser cannot use passkeys here: it is too old, or this is not HTTPS.");
  }
}

on(byId("sign-in"), "submit", async (form) => {
  await call("POST", "session", entered(form));
  form.reset();
  await refresh();
});

on(byId("use-passkey"), "click", async () => {
  needPasskeys();
  const { options, state } = await call("POST", "session/passkey-options", {});
  const credential = await navigator.credentials.get({
    publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options),
  });
  await call("POST", "session/passkey", { state, credential: credential.toJSON() });
  await refresh();
});

on(byId("sign-up"), "submit", async (form) => {
  await call("POST", "accounts", entered(form));
  form.reset();
  await refresh();
  say("Your account is made. Open the link in the mail that was sent to you, then sign in.");
});

on(byId("forgotten"), "submit", async (form) => {
  await call("POST", "password-resets", entered(form));
  form.reset();
  say("If there is an account of that email, a mail with a link was sent to it.");
});

on(byId("sign-out"), "click", async () => {
  await call("DELETE", "session");
  await refresh();
});

on(byId("add-passkey"), "submit", async (form) => {
  needPasskeys();
  const { options, state } = await call("POST", "passkeys/registration-options", {});
  const credential = await navigator.credentials.create({
    publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options),
  });
  await call("POST", "passkeys", { state, ...entered(form), credential: credential.toJSON() });
  form.reset();
  await refresh();
});

for (const [kind, link] of Object.entries(links)) {
  on(document.querySelector(`#${kind} form`), "submit", async (form) => {
    await call("POST", link.path, { ...entered(form), [link.secret]: opened.secret });
    opened = null;
    form.reset();
    await refresh();
    say(link.done);
  });
}

async function begin() {
  openLink();
  say("");
  arrive();
  try {
    await refresh();
  } catch (error) {
    say(explained(error), true);
  }
}

// A link that is opened where the page is open already changes the fragment alone.
window.addEventListener("hashchange", begin);
begin();
