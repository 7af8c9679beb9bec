package serving

import (
	"net/http"

	"ctrloop/internal/httpapi"
)

// Handler serves the routes to everybody.
func (s *Service) Handler() http.Handler { return httpapi.Open(s.Routes()...) }
