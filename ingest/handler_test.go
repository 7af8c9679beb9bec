package ingest

import (
	"net/http"

	"ctrloop/internal/httpapi"
)

// Handler serves the edge's routes to everybody.
func (e *Edge) Handler() http.Handler { return httpapi.Open(e.Routes()...) }
