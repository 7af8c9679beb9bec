package creatives

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"ctrloop/schemas"
)

const maxListed = 10_000

// Register adds this package's calls to a mux:
//
//	POST /v1/creatives            {"products": [..] | "all", "version": .. , "per_product": .., "seed": ..} -> 202, progress
//	GET  /v1/creatives/jobs/{id}  -> progress
//	DELETE /v1/creatives/jobs/{id}  cancels -> progress; 409: it has ended
//	GET  /v1/creatives            ?product= &version= &limit= -> list
//	GET  /v1/creatives/{id}       -> one; {id}.png: its picture
//	PUT  /v1/creatives/{id}/matching  {"score": 0..1, "judge": ..} -> the creative; for judges outside of this process
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/creatives", s.postJob)
	mux.HandleFunc("GET /v1/creatives/jobs/{id}", s.getJob)
	mux.HandleFunc("DELETE /v1/creatives/jobs/{id}", s.deleteJob)
	mux.HandleFunc("GET /v1/creatives", s.list)
	mux.HandleFunc("GET /v1/creatives/{id}", s.get)
	mux.HandleFunc("PUT /v1/creatives/{id}/matching", s.putMatching)
}

func (s *Service) postJob(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Products   json.RawMessage `json:"products"`
		Version    string          `json:"version"`
		PerProduct int             `json:"per_product"`
		Seed       uint64          `json:"seed"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 8<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		fail(w, http.StatusBadRequest, "body: "+err.Error())
		return
	}
	req := Request{Model: body.Version, PerProduct: body.PerProduct, Seed: body.Seed}
	if req.Model == "" {
		req.Model = "prompt"
	}
	if all := string(body.Products); all != `"all"` && all != "" && all != "null" {
		if err := json.Unmarshal(body.Products, &req.Products); err != nil || len(req.Products) == 0 {
			fail(w, http.StatusBadRequest, `products: want "all" or a list of ids`)
			return
		}
	}
	p, err := s.Submit(req)
	switch {
	case errors.Is(err, ErrBadRequest):
		fail(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, ErrFull):
		w.Header().Set("Retry-After", "60")
		fail(w, http.StatusTooManyRequests, err.Error())
	case err != nil:
		s.log.Error().Err(err).Msg("job could not be queued")
		fail(w, http.StatusInternalServerError, err.Error())
	default:
		w.Header().Set("Location", "/v1/creatives/jobs/"+p.ID)
		write(w, http.StatusAccepted, p)
	}
}

func (s *Service) getJob(w http.ResponseWriter, r *http.Request) {
	p, ok := s.Job(r.PathValue("id"))
	if !ok {
		fail(w, http.StatusNotFound, fmt.Sprintf("no job %q", r.PathValue("id")))
		return
	}
	write(w, http.StatusOK, p)
}

func (s *Service) deleteJob(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if p, ok := s.Cancel(id); ok {
		write(w, http.StatusOK, p)
		return
	}
	if p, ok := s.Job(id); ok {
		fail(w, http.StatusConflict, fmt.Sprintf("job %q has ended already: it is %s", id, p.State))
		return
	}
	fail(w, http.StatusNotFound, fmt.Sprintf("no job %q", id))
}

func (s *Service) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	limit := 1000
	if l := q.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil || n < 1 || n > maxListed {
			fail(w, http.StatusBadRequest, fmt.Sprintf("limit: want 1 to %d", maxListed))
			return
		}
		limit = n
	}
	out := s.lib.Now().List(q.Get("product"), q.Get("version"), limit)
	if out == nil {
		out = []schemas.Creative{}
	}
	write(w, http.StatusOK, map[string]any{"creatives": out})
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) {
	id, picture := strings.CutSuffix(r.PathValue("id"), ".png")
	c, ok := s.lib.Now().Get(id)
	if !ok {
		fail(w, http.StatusNotFound, fmt.Sprintf("no creative %q", id))
		return
	}
	if !picture {
		write(w, http.StatusOK, c)
		return
	}
	file, err := s.store.Bytes(c.Asset)
	if err != nil {
		s.log.Error().Err(err).Str("creative", id).Msg("picture is missing")
		fail(w, http.StatusNotFound, fmt.Sprintf("the picture of %q is not in the store", id))
		return
	}
	// The id is a digest of the file: what it names never changes.
	h := w.Header()
	h.Set("Content-Type", "image/png")
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("ETag", `"`+c.Asset+`"`)
	if r.Header.Get("If-None-Match") == `"`+c.Asset+`"` {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(file)
}

// maxJudgeName bounds a judge's name, in bytes.
const maxJudgeName = 100

// putMatching takes a judge's score of a creative, in the place of the one it had.
func (s *Service) putMatching(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Score *float64 `json:"score"`
		Judge string   `json:"judge"`
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		fail(w, http.StatusBadRequest, "body: "+err.Error())
		return
	}
	if body.Score == nil || !(*body.Score >= 0 && *body.Score <= 1) || body.Judge == "" || len(body.Judge) > maxJudgeName {
		fail(w, http.StatusBadRequest, fmt.Sprintf("want a score from 0 to 1 and the judge's name of at most %d bytes", maxJudgeName))
		return
	}
	if s.judge != nil && body.Judge == s.judge.Name() {
		fail(w, http.StatusBadRequest, fmt.Sprintf("judge %q is the built-in one: scores under its name are its own; take another name", body.Judge))
		return
	}
	s.writes.Lock()
	defer s.writes.Unlock()
	c, ok := s.lib.Now().Get(r.PathValue("id"))
	if !ok {
		fail(w, http.StatusNotFound, fmt.Sprintf("no creative %q", r.PathValue("id")))
		return
	}
	c.Matching, c.MatchingJudge = *body.Score, body.Judge
	if err := s.pub.Publish(r.Context(), c); err != nil {
		s.log.Error().Err(err).Str("creative", c.ID).Msg("score could not be published")
		fail(w, http.StatusServiceUnavailable, "publish the score: "+err.Error()+"; send it again")
		return
	}
	s.lib.Put(c)
	write(w, http.StatusOK, c)
}

func write(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, code int, msg string) {
	write(w, code, map[string]any{"error": map[string]any{"message": msg, "code": code}})
}
