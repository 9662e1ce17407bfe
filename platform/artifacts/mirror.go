package artifacts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// How long a mirror tries one server: to be answered at all, and to be sent it.
const (
	answerBound = 5 * time.Second
	fetchBound  = 2 * time.Minute
)

// mirrorKeeps is how many of the largest artifacts a mirror has room for. What
// does not fit any more is fetched again when it is asked for.
const mirrorKeeps = 8

// Mirror is the handler on a client: it serves the tasks of its machine from its
// folder, and fetches what is missing from the servers.
type Mirror struct {
	store   *store
	servers []string
	http    *http.Client
	log     *slog.Logger

	mu       sync.Mutex
	fetching map[artifact]*fetch
}

// fetch is one that is going on.
type fetch struct {
	done chan struct{}
	err  error
}

// NewMirror fetches from servers, host:port, with the machine's certificate in
// config, and keeps artifacts of at most limit bytes in a folder: eight of that
// size, or more smaller ones.
func NewMirror(dir string, limit int64, servers []string, config *tls.Config, log *slog.Logger) (*Mirror, error) {
	if len(servers) == 0 {
		return nil, errors.New("a mirror needs the addresses of servers")
	}
	s, err := openStore(dir, limit)
	if err != nil {
		return nil, err
	}
	return &Mirror{
		store: s, servers: servers, log: log, fetching: map[artifact]*fetch{},
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig: config, TLSHandshakeTimeout: answerBound, ResponseHeaderTimeout: answerBound, IdleConnTimeout: 30 * time.Second,
		}},
	}, nil
}

// ServeHTTP answers GET and HEAD of /<sha256>/<name>.
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "GET and HEAD are possible", http.StatusMethodNotAllowed)
		return
	}
	a, err := fromPath(r.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if file, err := m.store.open(a); err == nil {
		file.Close()
		m.store.use(a, time.Now())
	} else if errors.Is(err, fs.ErrNotExist) {
		if err := m.fetch(r.Context(), a); err != nil {
			status := http.StatusBadGateway
			if errors.Is(err, fs.ErrNotExist) {
				status = http.StatusNotFound
			}
			m.log.Error("artifact not fetched", "name", a.name, "sha256", a.sum, "err", err)
			http.Error(w, err.Error(), status)
			return
		}
	}
	serve(w, r, m.store, a)
}

// fetch brings an artifact here, once for all that ask for it at the same time.
// It goes on when the one that asked first goes away.
func (m *Mirror) fetch(ctx context.Context, a artifact) error {
	m.mu.Lock()
	f := m.fetching[a]
	if f == nil {
		f = &fetch{done: make(chan struct{})}
		m.fetching[a] = f
		go func() {
			f.err = m.fetchFromAny(context.WithoutCancel(ctx), a)
			m.mu.Lock()
			delete(m.fetching, a)
			m.mu.Unlock()
			close(f.done)
		}()
	}
	m.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wait returns when no fetch is going on, or when ctx ends. The mirror must not
// be asked any more.
func (m *Mirror) Wait(ctx context.Context) error {
	m.mu.Lock()
	going := make([]*fetch, 0, len(m.fetching))
	for _, f := range m.fetching {
		going = append(going, f)
	}
	m.mu.Unlock()
	for _, f := range going {
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// fetchFromAny asks the servers one after the other, each time another first. It
// is fs.ErrNotExist when all that answered did not have it.
func (m *Mirror) fetchFromAny(ctx context.Context, a artifact) error {
	var failed []error
	for _, i := range rand.Perm(len(m.servers)) {
		err := m.fetchFrom(ctx, m.servers[i], a)
		if err == nil {
			return nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", m.servers[i], err))
	}
	missing := 0
	for _, err := range failed {
		if errors.Is(err, fs.ErrNotExist) {
			missing++
		}
	}
	if missing > 0 && missing < len(failed) {
		// Perhaps one that does not answer has it: this is not the error of those
		// that lack it.
		return fmt.Errorf("fetch %s: not all servers could be asked: %s", a.name, errors.Join(failed...)) //nolint:errorlint // see above
	}
	return fmt.Errorf("fetch %s: %w", a.name, errors.Join(failed...))
}

func (m *Mirror) fetchFrom(ctx context.Context, server string, a artifact) error {
	ctx, cancel := context.WithTimeout(ctx, fetchBound)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+a.path(), nil)
	if err != nil {
		return err
	}
	response, err := m.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fs.ErrNotExist
	default:
		return errors.New(response.Status)
	}
	start := time.Now()
	if err := m.store.add(a, response.Body); err != nil {
		return err
	}
	if err := m.store.trim(mirrorKeeps*m.store.limit, a); err != nil {
		m.log.Warn("old artifacts are still there", "err", err)
	}
	m.log.Info("artifact fetched", "name", a.name, "sha256", a.sum, "from", server, "elapsed", time.Since(start))
	return nil
}
