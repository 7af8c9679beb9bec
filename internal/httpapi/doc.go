// Package httpapi is what every HTTP listener is made of: one shape of errors, routes that name the scope that they want,
// bodies that cost memory only as their bytes arrive, deadlines for clients that do not send or do not read, bounds on
// connections, checks of Host and Origin, and the place where a request gets an identity.
//
// It is the only package that builds an http.Server. A service offers its routes:
//
//	func (s *Service) Routes() []httpapi.Route {
//		return []httpapi.Route{{Method: "GET", Path: "/v1/things", Scope: access.Read, Handle: s.list}}
//	}
//
// and the composition root listens with them: kit.Listen("api", address, routes...). Tests use [Open], which lets
// everybody in.
package httpapi
