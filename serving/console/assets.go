package console

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"

	"ctrloop/internal/httpapi"
)

//go:embed ui/dist
var dist embed.FS

// policy lets the page load its own script, style and images and talk to its own server: nothing else, nothing
// inline, no frame around it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func guard(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}

// assets serves the embedded files; a browser revalidates them by their digest.
func assets() http.HandlerFunc {
	type file struct {
		body      []byte
		kind, tag string
	}
	files := map[string]file{}
	err := fs.WalkDir(dist, "ui/dist", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := dist.ReadFile(p)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		files[strings.TrimPrefix(p, "ui/dist/")] = file{body, mime.TypeByExtension(path.Ext(p)), `"` + hex.EncodeToString(sum[:8]) + `"`}
		return nil
	})
	if err != nil {
		panic("console: embedded files: " + err.Error()) // a bug of the build, not of the run
	}
	return func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/assets/")
		if r.URL.Path == "/" {
			name = "index.html"
		}
		f, ok := files[name]
		if !ok || name == "index.html" && r.URL.Path != "/" {
			httpapi.Fail(w, httpapi.Refuse(http.StatusNotFound, "the page names its files", "no file %q", r.URL.Path))
			return
		}
		guard(w)
		w.Header().Set("Content-Type", f.kind)
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", f.tag)
		if r.Header.Get("If-None-Match") == f.tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(f.body)
	}
}
