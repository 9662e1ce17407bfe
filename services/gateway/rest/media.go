package rest

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/requestid"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// mediaPrefix is what all paths of media begin with.
const mediaPrefix = "/v1/media/"

const (
	// mediaAnswer is how long a service may take to begin its answer when it has all
	// that it was sent: at the end of an upload it puts the parts together.
	mediaAnswer = 2 * time.Minute
	// mediaIdle is for how long a connection to a service is kept without use.
	mediaIdle = time.Minute
	// mediaPause is how long nothing may come from a client, or be read by it.
	mediaPause = 30 * time.Second
	mediaChunk = 32 << 10
)

// mediaMethod is what stages see: media take as long as streams do, and are no
// calls that wait for their turn.
var mediaMethod = &catalog.Method{Path: "media", ClientStreams: true, ServerStreams: true}

// media passes requests for media on to a service that speaks HTTP itself, with
// their bytes as they come.
type media struct{ proxy *httputil.ReverseProxy }

// newMedia makes one that connects with dial.
func newMedia(dial func(context.Context) (net.Conn, error), errors io.Writer) *media {
	return &media{&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", "media"
			for name := range r.Out.Header {
				if strings.HasPrefix(name, "X-Marquee-") {
					delete(r.Out.Header, name)
				}
			}
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       mediaIdle,
			ResponseHeaderTimeout: mediaAnswer,
			DisableCompression:    true, // what is sent is what was stored
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			if failure, ok := r.Context().Value(mediaFailure{}).(*error); ok {
				*failure = err
			}
		},
		ErrorLog: log.New(errors, "", 0),
	}}
}

// mediaFailure is the key of where a request's failure is put.
type mediaFailure struct{}

// forward passes a request on. An error has not been answered yet.
func (m *media) forward(ctx context.Context, call *stage.Call, w http.ResponseWriter, r *http.Request) error {
	var failure error
	r = r.WithContext(context.WithValue(ctx, mediaFailure{}, &failure))
	r.Header.Set(requestid.Key, call.RequestID)
	control := http.NewResponseController(w)
	r.Body = &patient{ReadCloser: r.Body, control: control}
	m.proxy.ServeHTTP(&unhurried{ResponseWriter: w, control: control}, r)
	switch {
	case failure == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("passing media on: %w", context.Cause(ctx))
	default:
		return fault.New(fault.Unavailable, "MEDIA_UNAVAILABLE", "the service with the media cannot be reached; try again").
			WithRetryAfter(time.Second).Because(failure)
	}
}

// patient gives each read of a request's body its time.
type patient struct {
	io.ReadCloser
	control *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.control.SetReadDeadline(time.Now().Add(mediaPause)); err != nil {
		return 0, fmt.Errorf("giving an upload its time: %w", err)
	}
	return p.ReadCloser.Read(b)
}

// unhurried gives each write of an answer its time.
type unhurried struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (u *unhurried) Write(b []byte) (written int, err error) {
	for len(b) > 0 {
		chunk := b[:min(len(b), mediaChunk)]
		if err := u.control.SetWriteDeadline(time.Now().Add(mediaPause)); err != nil {
			return written, fmt.Errorf("giving a download its time: %w", err)
		}
		n, err := u.ResponseWriter.Write(chunk)
		written += n
		if err != nil {
			return written, err
		}
		b = b[n:]
	}
	return written, nil
}

// Unwrap is for http.ResponseController.
func (u *unhurried) Unwrap() http.ResponseWriter { return u.ResponseWriter }
