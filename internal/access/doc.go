// Package access says who may do what: scopes, identities, and the tokens of an instance in a file that holds only
// their hashes. What carries a token (a header, a cookie) and what is refused how is the business of internal/httpapi.
package access
