// What survives closing the page: decisions in localStorage, drawn masks in IndexedDB. A browser may
// refuse either; then the page says that nothing is kept.
const memory = {
  refused: false,
  database: null,
  unkept: new Set(), // drawn masks that only this tab has

  read(name) {
    try { return JSON.parse(localStorage.getItem(name)); } catch { return null; }
  },

  write(name, value) {
    try { localStorage.setItem(name, JSON.stringify(value)); } catch { this.refuse(); }
  },

  refuse() {
    if (!this.refused) say("This browser does not keep the review when the page is closed; save it before.");
    this.refused = true;
  },

  async open() {
    this.database = await new Promise((resolve) => {
      setTimeout(() => resolve(null), 3000); // a browser may never answer
      try {
        const request = indexedDB.open("coseg review", 1);
        request.onupgradeneeded = () => request.result.createObjectStore("masks");
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => resolve(null);
      } catch { resolve(null); }
    });
  },

  // Every drawn mask of this page, by name, as PNG.
  async masks(key) {
    const found = new Map();
    const prefix = `coseg mask ${key} `;
    try {
      for (const name of Object.keys(localStorage)) {
        if (name.startsWith(prefix)) found.set(name.slice(prefix.length), fromBase64(localStorage.getItem(name)));
      }
    } catch { /* no storage */ }
    if (!this.database) return found;
    const masks = this.database.transaction("masks").objectStore("masks");
    const range = IDBKeyRange.bound([key], [key, []]);
    const [names, pngs] = await Promise.all([masks.getAllKeys(range), masks.getAll(range)].map(answer)).catch(() => [[], []]);
    names.forEach((name, n) => found.set(name[1], pngs[n]));
    return found;
  },

  // One drawn mask, or null.
  async mask(key, name) {
    try {
      const found = this.database && (await answer(this.database.transaction("masks").objectStore("masks").get([key, name])));
      const text = found ? null : localStorage.getItem(`coseg mask ${key} ${name}`);
      return found || (text ? fromBase64(text) : null);
    } catch { return null; }
  },

  async keepMask(key, name, png) {
    try {
      if (this.database) {
        const masks = this.database.transaction("masks", "readwrite").objectStore("masks");
        await answer(png ? masks.put(png, [key, name]) : masks.delete([key, name]));
      } else if (png) localStorage.setItem(`coseg mask ${key} ${name}`, toBase64(png));
      if (!png) localStorage.removeItem(`coseg mask ${key} ${name}`);
      this.unkept.delete(name);
    } catch {
      this.unkept.add(name);
      this.refuse();
    }
    this.write(drawnKey, [name, Date.now(), Math.random()]); // only a change is told to other tabs
  },
};

const answer = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
