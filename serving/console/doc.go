// Package console is the web page that shows whether the loop is turning: one embedded page, fed by a JSON
// document ([Overview]) at GET /api/overview and live at GET /api/live. It reads nothing itself; the composition
// root fills the document through a [Source].
//
// The page's source is TypeScript in ui/; what it is built into is committed in ui/dist, so that building the
// binary needs no Node. `npm ci && npm run build` in ui/ rebuilds it. No request leaves the machine.
package console
