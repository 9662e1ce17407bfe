package consultest

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

const (
	indexHeader       = "X-Consul-Index"
	lastContactHeader = "X-Consul-Lastcontact"
)

// Proxy stands between a client and an agent's HTTP API, counts the requests and
// breaks them when told. Faults apply to requests whose path starts with the
// given prefix ("" is all of them), also to blocking queries that are already
// waiting. Its methods may be called from any goroutine.
type Proxy struct {
	// Client talks to the agent through the proxy; Address is the proxy's
	// host:port.
	Client  *api.Client
	Address string

	mu       sync.Mutex
	requests []Request
	faults   []fault
	offset   uint64
	stale    time.Duration
	zero     bool
	// changed is closed and replaced when faults change, to free what hangs.
	changed chan struct{}
}

// Request is one request that reached the proxy.
type Request struct {
	Time   time.Time
	Method string
	Path   string
	Query  url.Values
}

type fault struct {
	prefix string
	// status is what is answered; 0 hangs, -1 cuts the connection.
	status int
}

const (
	hang = 0
	cut  = -1
)

// Proxy starts a proxy in front of the agent; it ends with the test.
func (a *Agent) Proxy() *Proxy {
	a.tb.Helper()
	p := &Proxy{changed: make(chan struct{})}
	reverse := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: a.Address})
			p.shiftRequest(r.Out)
		},
		Transport:      &http.Transport{MaxIdleConnsPerHost: 1000},
		ModifyResponse: p.modifyResponse,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			// A dead agent's port refuses connections; closing is the nearest.
			closeConnection(w)
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.record(r)
		if p.apply(w, r) {
			return
		}
		reverse.ServeHTTP(w, r)
	}))
	p.Address = server.Listener.Addr().String()
	a.tb.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		reverse.Transport.(*http.Transport).CloseIdleConnections()
	})
	p.Client = newClient(a.tb, p.Address, a.Token)
	return p
}

// Fail has requests answered with an HTTP status, for example 500.
func (p *Proxy) Fail(prefix string, status int) { p.add(fault{prefix, status}) }

// Hang leaves requests without an answer until Heal.
func (p *Proxy) Hang(prefix string) { p.add(fault{prefix, hang}) }

// Cut closes the connections of requests without an answer.
func (p *Proxy) Cut(prefix string) { p.add(fault{prefix, cut}) }

// Heal ends all faults. Requests that hang go on.
func (p *Proxy) Heal() { p.set(nil) }

// OffsetIndex adds n to every index the agent reports, and takes it off again in
// requests. Going back to a smaller offset is what a client sees when the
// servers' state was restored from a snapshot: it then waits for an index that
// is far away.
func (p *Proxy) OffsetIndex(n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offset = n
}

// ZeroIndex has every answer carry the index 0, as Consul has done by mistake.
func (p *Proxy) ZeroIndex(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.zero = on
}

// Stale makes the answers to queries that allow stale reads look as if the server
// had last heard from its leader that long ago; 0 ends it.
func (p *Proxy) Stale(since time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale = since
}

// Requests lists the requests so far whose path starts with prefix, oldest first.
func (p *Proxy) Requests(prefix string) []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	var matching []Request
	for _, r := range p.requests {
		if strings.HasPrefix(r.Path, prefix) {
			matching = append(matching, r)
		}
	}
	return matching
}

// Count is the number of requests so far whose path starts with prefix.
func (p *Proxy) Count(prefix string) int { return len(p.Requests(prefix)) }

func (p *Proxy) add(f fault) {
	p.mu.Lock()
	faults := append([]fault{f}, p.faults...)
	p.mu.Unlock()
	p.set(faults)
}

func (p *Proxy) set(faults []fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = faults
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) record(r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests = append(p.requests, Request{Time: time.Now(), Method: r.Method, Path: r.URL.Path, Query: r.URL.Query()})
}

func (p *Proxy) fault(path string) (f fault, found bool, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		if strings.HasPrefix(path, f.prefix) {
			return f, true, p.changed
		}
	}
	return fault{}, false, p.changed
}

// apply breaks a request before it reaches the agent and reports whether it has
// been answered.
func (p *Proxy) apply(w http.ResponseWriter, r *http.Request) bool {
	for {
		f, found, changed := p.fault(r.URL.Path)
		switch {
		case !found:
			return false
		case f.status == cut:
			closeConnection(w)
			return true
		case f.status != hang:
			http.Error(w, "fault injected by the test", f.status)
			return true
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return true
		}
	}
}

// modifyResponse holds back the answer of a blocking query that was waiting when
// Hang was called, and shifts the index.
func (p *Proxy) modifyResponse(response *http.Response) error {
	for {
		f, found, changed := p.fault(response.Request.URL.Path)
		if !found || f.status != hang {
			break
		}
		select {
		case <-changed:
		case <-response.Request.Context().Done():
			return response.Request.Context().Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stale > 0 && response.Request.URL.Query().Has("stale") {
		response.Header.Set(lastContactHeader, strconv.FormatInt(p.stale.Milliseconds(), 10))
	}
	index, err := strconv.ParseUint(response.Header.Get(indexHeader), 10, 64)
	if err != nil {
		return nil // answers without an index pass as they are
	}
	index += p.offset
	if p.zero {
		index = 0
	}
	response.Header.Set(indexHeader, strconv.FormatUint(index, 10))
	return nil
}

func (p *Proxy) shiftRequest(r *http.Request) {
	query := r.URL.Query()
	index, err := strconv.ParseUint(query.Get("index"), 10, 64)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if index < p.offset {
		return
	}
	query.Set("index", strconv.FormatUint(index-p.offset, 10))
	r.URL.RawQuery = query.Encode()
}

func closeConnection(w http.ResponseWriter) {
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		return
	}
	if conn, _, err := hijacker.Hijack(); err == nil {
		conn.Close()
	}
}

func newClient(tb testing.TB, address, token string) *api.Client {
	tb.Helper()
	config := api.DefaultConfig()
	config.Address, config.Token, config.Scheme = address, token, "http"
	client, err := api.NewClient(config)
	if err != nil {
		tb.Fatalf("consultest: make a client: %v", err)
	}
	return client
}
