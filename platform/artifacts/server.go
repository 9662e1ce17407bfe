package artifacts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"time"
)

// Server is the handler of a server of the cluster. It expects TLS with client
// certificates verified against the agents' CA: every holder of one may read,
// the operator alone may write.
type Server struct {
	store    *store
	operator string
	log      *slog.Logger
}

// NewServer keeps artifacts of at most limit bytes in a folder. operator is the
// common name of the certificate that may write.
func NewServer(dir string, limit int64, operator string, log *slog.Logger) (*Server, error) {
	s, err := openStore(dir, limit)
	if err != nil {
		return nil, err
	}
	return &Server{store: s, operator: operator, log: log}, nil
}

// listed is how GET / names an artifact.
type listed struct {
	SHA256 string `json:"sha256"`
	Name   string `json:"name"`
	// Idle is how many seconds ago it was uploaded or asked for last.
	Idle float64 `json:"idle_seconds"`
}

// ServeHTTP answers GET, HEAD, PUT and DELETE of /<sha256>/<name>, and GET of /
// with a list of what there is.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		http.Error(w, "a certificate of this cluster is required", http.StatusForbidden)
		return
	}
	if r.URL.Path == "/" && r.Method == http.MethodGet {
		s.list(w)
		return
	}
	a, err := fromPath(r.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	caller := r.TLS.VerifiedChains[0][0].Subject.CommonName
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		// Before it is looked for: an Uploader that is told that it is here must be
		// able to rely on that for a while.
		s.store.use(a, time.Now())
		serve(w, r, s.store, a)
		return
	case http.MethodPut, http.MethodDelete:
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT, DELETE")
		http.Error(w, "GET, HEAD, PUT and DELETE are possible", http.StatusMethodNotAllowed)
		return
	}
	if caller != s.operator {
		s.log.Warn("refused to write an artifact", "caller", caller, "method", r.Method, "name", a.name)
		http.Error(w, fmt.Sprintf("only the certificate of %q may write, this is that of %q", s.operator, caller), http.StatusForbidden)
		return
	}
	if r.Method == http.MethodDelete {
		s.answer(w, a, "removed", s.store.remove(a), http.StatusNoContent)
		return
	}
	if r.ContentLength > s.store.limit {
		http.Error(w, fmt.Sprintf("at most %d bytes", s.store.limit), http.StatusRequestEntityTooLarge)
		return
	}
	s.answer(w, a, "stored", s.store.add(a, r.Body), http.StatusCreated)
}

func (s *Server) list(w http.ResponseWriter) {
	all, err := s.store.list()
	if err != nil {
		s.log.Error("artifacts not listed", "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer := []listed{}
	for _, a := range all {
		answer = append(answer, listed{a.sum, a.name, time.Since(a.used).Seconds()})
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		s.log.Warn("artifacts not listed", "err", err)
	}
}

func (s *Server) answer(w http.ResponseWriter, a artifact, did string, err error, good int) {
	switch {
	case err == nil:
		s.log.Info("artifact "+did, "name", a.name, "sha256", a.sum)
		w.WriteHeader(good)
	case errors.Is(err, ErrMismatch):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	case errors.Is(err, ErrTooLarge):
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
	default:
		s.log.Error("artifact not "+did, "name", a.name, "sha256", a.sum, "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// fromPath reads /<sha256>/<name>.
func fromPath(path string) (artifact, error) {
	if len(path) < 67 || path[0] != '/' || path[65] != '/' {
		return artifact{}, errors.New("want /<sha256>/<name>")
	}
	return newArtifact(path[1:65], path[66:])
}

// serve answers with what is in the store.
func serve(w http.ResponseWriter, r *http.Request, s *store, a artifact) {
	file, err := s.open(a)
	if errors.Is(err, fs.ErrNotExist) {
		http.Error(w, "there is no such artifact", http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	// No time of change: what is under a name never changes.
	http.ServeContent(w, r, a.name, time.Time{}, file)
}
