// Check an SDL, as JSON on standard input, by the chain SDK whose folder is the argument. Prints
// {"errors": […]} or {"manifest": …}.
const { createRequire } = require("node:module");
const { validateSDL, generateManifest } = createRequire(process.argv[2] + "/")("@akashnetwork/chain-sdk");

const plain = (_, value) =>
  typeof value === "bigint" ? String(value)
  : value instanceof Uint8Array ? Buffer.from(value).toString()
  : value;
const sdl = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const errors = validateSDL(sdl, "mainnet");
if (errors) {
  console.log(JSON.stringify({ errors: errors.map((error) => error.message) }));
} else {
  const made = generateManifest(sdl, "mainnet");
  console.log(JSON.stringify(made.ok ? { manifest: made.value.groups } : { errors: [made.value] }, plain));
}
