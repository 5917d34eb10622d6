// The samples' pictures: parts in the page, and files beside it that are loaded as scripts, which
// works from a disk too.
const $ = (id) => document.getElementById(id);
const index = JSON.parse($("bench-index").textContent);
const KEPT_PARTS = 5, KEPT_SAMPLES = 6;
const keptParts = new Map(), keptSamples = new Map(), waiting = new Map();

window.cosegPart = (number, digest, content) => waiting.get(number)?.(digest, content);

const keep = (kept, key, value, most) => {
  kept.delete(key);
  kept.set(key, value);
  value.catch(() => kept.delete(key));
  while (kept.size > most) kept.delete(kept.keys().next().value);
  return value;
};

const partOfFile = (number) =>
  new Promise((resolve, reject) => {
    const name = index.files[number - index.inside];
    const script = document.createElement("script");
    const fail = (text) => reject(new Error(text));
    waiting.set(number, (digest, content) =>
      digest === index.digests[number] ? resolve(content) : fail(`The file ${name} belongs to another page; restore the file that was written with this page.`));
    script.onload = () => { fail(`The file ${name} is damaged; restore it.`); script.remove(); };
    script.onerror = () => {
      fail(`The file ${name} is missing: keep the folder review beside this page to see this sample.`);
      script.remove();
    };
    script.src = name;
    document.head.append(script);
  });

const loadPart = (number) =>
  keep(
    keptParts,
    number,
    keptParts.get(number) ||
      (number < index.inside ? (async () => JSON.parse($(`bench-part-${number}`).textContent))() : partOfFile(number)),
    KEPT_PARTS,
  );

const decodeSample = async (n) => {
  if (index.parts[n] < 0) throw new Error("This page has no pictures of this sample.");
  const content = (await loadPart(index.parts[n]))[index.ids[n]];
  const image = new Image();
  image.src = content.image;
  const [given, proposal] = await Promise.all(
    ["given", "proposal"].map((name) => (content[name] ? decodePng(fromBase64(content[name])) : null)),
  );
  await image.decode();
  const fits = proposal && proposal.width === given.width && proposal.height === given.height;
  return { n, image, given, proposal: fits ? proposal : null, width: given.width, height: given.height };
};

const loadSample = (n) => keep(keptSamples, n, keptSamples.get(n) || decodeSample(n), KEPT_SAMPLES);
