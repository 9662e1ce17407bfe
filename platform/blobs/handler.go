package blobs

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/fault/grpcfault"
	"github.com/marquee-ads/marquee/platform/fault/problem"
)

const (
	// stretch is how many bytes of an answer ReadTime is for.
	stretch = 256 << 10
	// maxRanges is how many ranges of a blob one request may ask for; who asks for
	// more gets all of it.
	maxRanges = 16
	// forever is what a cache may take a year for (RFC 9111 knows nothing longer).
	forever = "public, max-age=31536000, immutable"
	// harmless lets a browser show a blob and run nothing in it.
	harmless = "default-src 'none'; sandbox"
)

// Options are what a Handler needs.
type Options struct {
	Store *Store
	// Authorize says who uploads, or why they may not: a fault.Error goes to the
	// caller, any other error is internal. Who may read is not asked: whoever knows
	// a blob's name knows its contents.
	Authorize func(*http.Request) (owner string, err error)
	// ChunkTime is how long PartSize bytes of an upload may take to arrive: 2 minutes
	// by default.
	ChunkTime time.Duration
	// ReadTime is how long 256 KiB of an answer may take to be read: 30 seconds by
	// default.
	ReadTime time.Duration
	Log      hclog.Logger
}

// Handler is the HTTP door of a Store. Below whatever path it is mounted with
// http.StripPrefix it answers
//
//	GET, HEAD /<sha256>                 a blob
//	POST /uploads                       begin an upload
//	HEAD, PATCH, DELETE /uploads/<id>   how far it is, go on, end it
//
// Uploads speak tus 1.0.0 (https://tus.io/protocols/resumable-upload) with its
// extensions creation, checksum and termination. Upload-Metadata must have sha256,
// 64 hexadecimal digits, and may have filetype, a media type; other keys are kept
// and given back. An upload is complete, and the blob can be read, when its offset is
// its length. Errors are problem details (RFC 9457).
//
// A Handler sets the read and write deadlines of its connections itself: those of the
// http.Server do not apply to it, but for ReadHeaderTimeout and IdleTimeout.
type Handler struct {
	opts Options
}

// NewHandler makes the door.
func NewHandler(opts Options) (*Handler, error) {
	switch {
	case opts.Store == nil:
		return nil, errors.New("the media door needs a Store")
	case opts.Authorize == nil:
		return nil, errors.New("the media door needs Authorize: who may upload")
	}
	if opts.ChunkTime <= 0 {
		opts.ChunkTime = 2 * time.Minute
	}
	if opts.ReadTime <= 0 {
		opts.ReadTime = 30 * time.Second
	}
	if opts.Log == nil {
		opts.Log = hclog.NewNullLogger()
	}
	return &Handler{opts: opts}, nil
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", harmless)
	if r.ContentLength != 0 {
		// net/http reads what is left of a body before it answers.
		extend(http.NewResponseController(w).SetReadDeadline, h.opts.ReadTime)
	}
	path := strings.TrimPrefix(r.URL.Path, "/")
	if first, id, _ := strings.Cut(path, "/"); first == "uploads" {
		h.serveUploads(w, r, id)
		return
	}
	if err := h.serveBlob(w, r, path); err != nil {
		h.fail(w, r, err)
	}
}

// serveBlob answers with a blob. Once it has begun to, it returns no error.
func (h *Handler) serveBlob(w http.ResponseWriter, r *http.Request, name string) error {
	header := w.Header()
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	default:
		header.Set("Allow", "GET, HEAD")
		return errMethod
	}
	sum, err := ParseSum(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.longest())
	defer cancel()
	content, closer, info, err := h.opts.Store.Content(ctx, sum)
	if err != nil {
		return err
	}
	defer closer.Close()
	disposition := "inline"
	if info.MediaType == textType {
		disposition = "attachment"
	}
	header.Set("Etag", `"`+name+`"`)
	header.Set("Cache-Control", forever)
	header.Set("Content-Type", info.MediaType)
	header.Set("Content-Disposition", disposition+`; filename="`+name[:16]+endings[info.MediaType]+`"`)
	if _, ok := endings[info.MediaType]; !ok { // not put there by Put
		header.Set("Content-Type", opaqueType)
		header.Set("Content-Disposition", "attachment")
	}
	if strings.Count(r.Header.Get("Range"), ",") >= maxRanges {
		r = r.Clone(ctx)
		r.Header.Del("Range")
	}
	answer := &answer{ResponseWriter: w, control: http.NewResponseController(w), time: h.opts.ReadTime}
	http.ServeContent(answer, r, "", time.Time{}, content)
	switch {
	case answer.refused == http.StatusPreconditionFailed:
		return errPrecondition
	case answer.refused == http.StatusRequestedRangeNotSatisfiable:
		return errOutOfRange
	case answer.refused != 0:
		return errAway
	case answer.failed != nil:
		h.opts.Log.Debug("a blob was not read to its end", "sha256", name, "error", answer.failed)
		// Half a blob must not look like a whole one.
		panic(http.ErrAbortHandler) //nolint:forbidigo // net/http's own way to cut a connection
	}
	return nil
}

// longest is how long the slowest reader takes over the largest blob.
func (h *Handler) longest() time.Duration {
	return h.opts.ReadTime * time.Duration(1+h.opts.Store.limits.BlobSize/stretch)
}

// answer gives each stretch of an answer its own time to be read, and holds back the
// errors that http.ServeContent would write.
type answer struct {
	http.ResponseWriter
	control *http.ResponseController
	time    time.Duration
	refused int   // the status of an error
	failed  error // the reader or the connection did
}

func (a *answer) WriteHeader(status int) {
	if status >= http.StatusBadRequest {
		a.refused = status
		return
	}
	extend(a.control.SetWriteDeadline, a.time)
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.refused != 0 {
		return len(p), nil
	}
	extend(a.control.SetWriteDeadline, a.time)
	n, err := a.ResponseWriter.Write(p)
	if err != nil {
		a.failed = err
	}
	return n, err
}

// ReadFrom copies r stretch by stretch, such that the kernel can send a file.
func (a *answer) ReadFrom(r io.Reader) (total int64, err error) {
	if a.refused != 0 {
		return io.Copy(io.Discard, r)
	}
	left := int64(math.MaxInt64)
	limited, ok := r.(*io.LimitedReader)
	if ok { // net/http looks for a file below one of these, not two
		r, left = limited.R, limited.N
	}
	for left > 0 && err == nil {
		extend(a.control.SetWriteDeadline, a.time)
		var n int64
		n, err = io.CopyN(a.ResponseWriter, r, min(left, stretch))
		total, left = total+n, left-n
	}
	switch {
	case limited != nil:
		limited.N = left
		if errors.Is(err, io.EOF) && left > 0 {
			err = io.ErrUnexpectedEOF
		}
	case errors.Is(err, io.EOF):
		err = nil
	}
	if err != nil {
		a.failed = err
	}
	return total, err
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// extend moves a deadline. A connection without deadlines, as in a test, has none.
func extend(set func(time.Time) error, by time.Duration) {
	_ = set(time.Now().Add(by))
}

// extendAnswer gives a short answer its time, after that in which net/http reads what
// is left of the body.
func (h *Handler) extendAnswer(w http.ResponseWriter) {
	extend(http.NewResponseController(w).SetWriteDeadline, 2*h.opts.ReadTime)
}

// fail answers with problem details. What is not the caller's fault is logged.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	id := r.Header.Get("X-Request-Id")
	f, ok := fault.From(err)
	if !ok || f.Code == fault.Unavailable || f.Code == fault.DataLoss || f.Code == fault.Internal {
		h.opts.Log.Error("media", "method", r.Method, "path", r.URL.Path, "request_id", id, "error", err)
	}
	details := problem.From(grpcfault.ToStatus(err, id), id)
	details.Instance, _, _ = strings.Cut(r.RequestURI, "?")
	if status, ok := httpStatuses[details.Reason]; ok {
		details.Status, details.Title = status, http.StatusText(status)
	}
	if details.Status == statusChecksumMismatch {
		details.Title = "Checksum Mismatch"
	}
	w.Header().Del("Etag")
	w.Header().Del("Content-Disposition")
	h.extendAnswer(w)
	details.Write(w)
}
