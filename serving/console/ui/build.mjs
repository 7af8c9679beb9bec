// Builds dist/ from src/: one script, one style sheet, the page and its icon. No file names a time or a machine, so
// that the same source gives the same bytes.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, rmSync } from "node:fs";

rmSync("dist", { recursive: true, force: true });
mkdirSync("dist");
await build({ entryPoints: { app: "src/main.ts" }, outdir: "dist", bundle: true, format: "esm", target: "es2022", minifySyntax: true, minifyWhitespace: true, legalComments: "none", charset: "utf8" });
await build({ entryPoints: { app: "src/style.css" }, outdir: "dist", minify: true });
for (const f of ["index.html", "icon.svg"]) copyFileSync(`src/${f}`, `dist/${f}`);
