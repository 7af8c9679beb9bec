package experiment

import (
	"net/http"

	"ctrloop/internal/httpapi"
)

// Handler serves the routes to everybody, as somebody called ada.
func (s *Service) Handler() http.Handler { return httpapi.OpenAs("ada", s.Routes()...) }
