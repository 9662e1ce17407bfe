// Package rest is the gateway's door for REST/JSON: HTTP/1.1 and HTTP/2
// requests to the routes that services declare with google.api.http.
package rest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc/metadata"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/deadline"
	"github.com/marquee-ads/marquee/services/gateway/recovery"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// Options are what the door needs.
type Options struct {
	Catalog *catalog.Catalog
	Stages  *stage.Chain
	// Limits are those the stages apply; the door derives its own from them.
	Limits deadline.Limits
	// MaxBody is the largest request body in bytes.
	MaxBody int64
	// BodyTimeout is how long a request's body may take to arrive.
	BodyTimeout time.Duration
	// ServedBy lets callers see which instance answered.
	ServedBy bool
	// Media connects to the service that has what is below /v1/media/; nil is that
	// there is none.
	Media func(context.Context) (net.Conn, error)
	// TLS secures the door; nil is plaintext (behind a load balancer).
	TLS *tls.Config
	Log hclog.Logger
}

const (
	// maxHeader bounds a request's line and headers, in bytes (net/http adds 4096).
	maxHeader     = 28 << 10
	headerTimeout = 5 * time.Second
	idleTimeout   = 2 * time.Minute
	// writeGrace is how long a client may take to read an answer.
	writeGrace = 30 * time.Second
	// streamGrace is what is left of the drain for streams to be told to go
	// elsewhere.
	streamGrace = 500 * time.Millisecond
)

// Door is the HTTP server.
type Door struct {
	opts   Options
	server *http.Server
	media  *media // nil without a service for them

	draining atomic.Bool
	buffers  sync.Pool // of *[]byte, for responses
	// leaving ends the streams that are open when the drain runs out.
	leaving context.Context
	leave   context.CancelCauseFunc
	served  chan struct{} // closed when Serve has returned
}

// New makes the door. Serve opens it.
func New(opts Options) *Door {
	d := &Door{opts: opts, served: make(chan struct{})}
	d.leaving, d.leave = context.WithCancelCause(context.Background())
	if opts.Media != nil {
		d.media = newMedia(opts.Media, quiet{opts.Log.Named("media")})
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	d.server = &http.Server{
		Handler:           d,
		Protocols:         &protocols,
		TLSConfig:         opts.TLS,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		// From the end of the header to the end of the answer; streams extend it.
		WriteTimeout:   opts.Limits.Max + opts.BodyTimeout + writeGrace,
		MaxHeaderBytes: maxHeader,
		HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second},
		ErrorLog:       log.New(quiet{opts.Log.Named("http")}, "", 0),
	}
	return d
}

// quiet takes net/http's own log: broken connections and handshakes.
type quiet struct{ log hclog.Logger }

func (q quiet) Write(line []byte) (int, error) {
	q.log.Debug(strings.TrimSpace(string(line)))
	return len(line), nil
}

// Serve takes requests from the listener until Stop. It does not block; failed
// is called if the door closes by itself.
func (d *Door) Serve(listener net.Listener, failed func(error)) {
	go func() {
		defer close(d.served)
		var err error
		if d.opts.TLS != nil {
			err = d.server.ServeTLS(listener, "", "")
		} else {
			err = d.server.Serve(listener)
		}
		if !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("serve HTTP: %w", err))
		}
	}()
}

// Drain asks clients, with every answer, to open their next connection
// elsewhere; the door still serves.
func (d *Door) Drain() { d.draining.Store(true) }

// Stop takes no new connections, lets requests in flight finish, ends the
// streams that do not shortly before ctx does, and cuts what is left then.
func (d *Door) Stop(ctx context.Context) error {
	d.Drain()
	if until, ok := ctx.Deadline(); ok {
		timer := time.AfterFunc(time.Until(until)-streamGrace, func() {
			d.leave(fault.New(fault.Unavailable, "GATEWAY_LEAVING", "this gateway is going away; call again"))
		})
		defer timer.Stop()
	}
	err := d.server.Shutdown(ctx)
	if err != nil {
		err = fmt.Errorf("requests in flight were cut: %w", errors.Join(err, d.server.Close()))
	}
	d.leave(nil)
	<-d.served
	return err
}

// ServeHTTP is every request's way through the door.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{door: d, w: w, r: r}
	// Around what the stages are not around.
	defer func() {
		switch what := recover(); what {
		case nil:
		case any(http.ErrAbortHandler):
			panic(what) //nolint:forbidigo // net/http's own way to cut a connection
		default:
			x.abandon(recovery.Caught(d.opts.Log, what, "target", r.Method+" "+r.URL.Path), "")
		}
	}()
	call := &stage.Call{
		Door:   stage.HTTP,
		Target: r.Method + " " + r.URL.Path,
		Client: clientOf(r),
		Start:  time.Now(),
	}
	call.Metadata = metadataOf(r.Header, call.Client)
	if d.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	forward := x.forward
	switch {
	case d.media != nil && strings.HasPrefix(r.URL.Path, mediaPrefix):
		call.Method = mediaMethod
		forward = func(ctx context.Context, call *stage.Call) error { return d.media.forward(ctx, call, w, r) }
	case x.find(d.opts.Catalog.Snapshot()):
		call.Method = x.method
	case len(x.allowed) == 0:
		d.opts.Catalog.Missing()
	}
	call.Timeout, x.problem = timeoutOf(r.Header)
	if call.Method != mediaMethod {
		call.Receive = func(ctx context.Context) error { return x.receive(ctx, call) }
	}
	err := d.opts.Stages.Run(r.Context(), call, forward)
	switch {
	case errors.Is(err, recovery.ErrPanicked):
		x.abandon(err, call.RequestID)
	case err != nil:
		x.fail(err, call.RequestID)
	}
}

// passed are the headers that go on to services; everything else of a request
// is the gateway's affair.
var passed = [...]struct{ header, key string }{
	{"Authorization", "authorization"},
	{"X-Request-Id", "x-request-id"},
	{"Traceparent", "traceparent"},
	{"Tracestate", "tracestate"},
	{"Accept-Language", "accept-language"},
}

func metadataOf(header http.Header, client string) metadata.MD {
	md := make(metadata.MD, 4)
	for _, p := range passed {
		if values := header[p.header]; len(values) > 0 {
			md[p.key] = values
		}
	}
	md[stage.ForwardedFor] = []string{client}
	return md
}

func clientOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// buffer lends an empty buffer for a response.
func (d *Door) buffer() *[]byte {
	if b, ok := d.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, 1<<10)
	return &b
}

// recycle takes a buffer back, unless one large response has blown it up.
func (d *Door) recycle(b *[]byte) {
	const most = 64 << 10
	if cap(*b) <= most {
		d.buffers.Put(b)
	}
}
