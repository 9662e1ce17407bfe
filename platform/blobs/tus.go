package blobs

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	tusVersion = "1.0.0"
	chunkType  = "application/offset+octet-stream"
)

// serveUploads answers for all uploads, or for one of them.
func (h *Handler) serveUploads(w http.ResponseWriter, r *http.Request, id string) {
	header := w.Header()
	header.Set("Tus-Resumable", tusVersion)
	header.Set("Cache-Control", "no-store")
	// The answer gets its time when there is one.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	method := r.Method
	if override := r.Header.Get("X-HTTP-Method-Override"); override != "" {
		method = override
	}
	if err := h.serveUpload(w, r, method, id); err != nil {
		h.fail(w, r, err)
	}
}

func (h *Handler) serveUpload(w http.ResponseWriter, r *http.Request, method, id string) error {
	header := w.Header()
	if method == http.MethodOptions {
		header.Set("Tus-Version", tusVersion)
		header.Set("Tus-Extension", "creation,checksum,termination")
		header.Set("Tus-Checksum-Algorithm", strings.Join(ChecksumAlgorithms(), ","))
		header.Set("Tus-Max-Size", strconv.FormatInt(h.opts.Store.limits.BlobSize, 10))
		h.answer(w, http.StatusNoContent)
		return nil
	}
	serve, allow := h.ofUpload(method), "OPTIONS, HEAD, PATCH, DELETE"
	if id == "" {
		serve, allow = h.begin, "OPTIONS, POST"
	}
	if serve == nil || id == "" && method != http.MethodPost {
		header.Set("Allow", allow)
		return errMethod
	}
	if r.Header.Get("Tus-Resumable") != tusVersion {
		header.Set("Tus-Version", tusVersion)
		return errVersion
	}
	owner, err := h.opts.Authorize(r)
	if err != nil {
		return err
	}
	return serve(w, r, owner, id)
}

// ofUpload is what a method does with one upload, or nil.
func (h *Handler) ofUpload(method string) func(http.ResponseWriter, *http.Request, string, string) error {
	switch method {
	case http.MethodHead:
		return h.progress
	case http.MethodPatch:
		return h.add
	case http.MethodDelete:
		return h.end
	default:
		return nil
	}
}

// answer ends a request about uploads well.
func (h *Handler) answer(w http.ResponseWriter, status int) {
	h.extendAnswer(w)
	w.WriteHeader(status)
}

func (h *Handler) begin(w http.ResponseWriter, r *http.Request, owner, _ string) error {
	if r.Header.Get("Upload-Defer-Length") != "" {
		return invalid("Upload-Defer-Length", "unsupported", "is not supported: say Upload-Length")
	}
	if r.Header.Get("Upload-Concat") != "" {
		return invalid("Upload-Concat", "unsupported", "is not supported")
	}
	size, err := number(r.Header, "Upload-Length")
	if err != nil {
		return err
	}
	raw := r.Header.Get("Upload-Metadata")
	metadata, err := parseMetadata(raw)
	if err != nil {
		return err
	}
	sum, err := ParseSum(metadata["sha256"])
	if err != nil {
		return invalid("Upload-Metadata", "sha256", "must have sha256: the SHA-256 of the contents as 64 hexadecimal digits in lower case")
	}
	u, err := h.opts.Store.Begin(r.Context(), owner, Announcement{
		Size: size, Sum: sum, MediaType: metadata["filetype"], Metadata: raw,
	})
	if err != nil {
		return err
	}
	// Relative, because only who mounted this knows what goes before it.
	location := "uploads/" + u.ID
	if strings.HasSuffix(r.URL.Path, "/") {
		location = u.ID
	}
	w.Header().Set("Location", location)
	h.answer(w, http.StatusCreated)
	return nil
}

// progress tells how far an upload is. One that has all its bytes and is not a blob
// yet, because nobody was there to finish it, is finished now.
func (h *Handler) progress(w http.ResponseWriter, r *http.Request, owner, id string) error {
	u, err := h.opts.Store.Upload(r.Context(), owner, id)
	if err != nil {
		return err
	}
	if !u.Complete && u.Offset == u.Size {
		if _, err := h.opts.Store.Finish(r.Context(), owner, id); err != nil {
			return err
		}
	}
	header := w.Header()
	header.Set("Upload-Offset", strconv.FormatInt(u.Offset, 10))
	header.Set("Upload-Length", strconv.FormatInt(u.Size, 10))
	if u.Metadata != "" {
		header.Set("Upload-Metadata", u.Metadata)
	}
	h.answer(w, http.StatusOK)
	return nil
}

// add appends a chunk.
func (h *Handler) add(w http.ResponseWriter, r *http.Request, owner, id string) error {
	if r.Header.Get("Content-Type") != chunkType {
		return errContentType
	}
	offset, err := number(r.Header, "Upload-Offset")
	if err != nil {
		return err
	}
	checksum, err := parseChecksum(r.Header.Get("Upload-Checksum"))
	if err != nil {
		return err
	}
	setDeadline := http.NewResponseController(w).SetReadDeadline
	u, err := h.opts.Store.Append(r.Context(), owner, id, Chunk{
		Offset: offset, Length: r.ContentLength, Checksum: checksum,
		Body: &timedBody{body: r.Body, set: setDeadline, time: h.opts.ChunkTime},
	})
	if err == nil && u.Offset == u.Size {
		_ = setDeadline(time.Time{}) // there is nothing more to read
		_, err = h.opts.Store.Finish(r.Context(), owner, id)
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errTooSlow
		w.Header().Set("Connection", "close")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled):
		err = errCutShort.Because(err)
		w.Header().Set("Connection", "close")
	}
	if err != nil {
		return err
	}
	w.Header().Set("Upload-Offset", strconv.FormatInt(u.Offset, 10))
	h.answer(w, http.StatusNoContent)
	return nil
}

func (h *Handler) end(w http.ResponseWriter, r *http.Request, owner, id string) error {
	if err := h.opts.Store.Abort(r.Context(), owner, id); err != nil {
		return err
	}
	h.answer(w, http.StatusNoContent)
	return nil
}

// timedBody gives each PartSize bytes of a body their own time to arrive.
type timedBody struct {
	body io.Reader
	set  func(time.Time) error
	time time.Duration
	left int64 // bytes of this deadline
}

func (t *timedBody) Read(p []byte) (int, error) {
	if t.left <= 0 {
		extend(t.set, t.time)
		t.left = PartSize
	}
	n, err := t.body.Read(p)
	t.left -= int64(n)
	return n, err
}

// number is a header that is a number of bytes.
func number(header http.Header, name string) (int64, error) {
	const want = "must be a number of bytes"
	values := header.Values(name)
	if len(values) != 1 {
		return 0, invalid(name, "number", want)
	}
	n, err := strconv.ParseUint(values[0], 10, 63)
	if err != nil {
		return 0, invalid(name, "number", want)
	}
	return int64(n), nil
}

// parseMetadata reads Upload-Metadata: pairs of a key and a value in base64, a space
// between them, a comma between pairs. A key may have no value.
func parseMetadata(raw string) (map[string]string, error) {
	metadata := make(map[string]string)
	if raw == "" {
		return metadata, nil
	}
	for pair := range strings.SplitSeq(raw, ",") {
		key, encoded, _ := strings.Cut(strings.TrimSpace(pair), " ")
		value, err := base64.StdEncoding.DecodeString(encoded)
		if _, twice := metadata[key]; key == "" || err != nil || twice {
			return nil, invalid("Upload-Metadata", "pairs", "must be pairs of a key and a value in base64, each key once")
		}
		metadata[key] = string(value)
	}
	return metadata, nil
}

// parseChecksum reads Upload-Checksum: an algorithm, a space, the hash in base64.
func parseChecksum(raw string) (*Checksum, error) {
	if raw == "" {
		return nil, nil
	}
	algorithm, encoded, _ := strings.Cut(raw, " ")
	newHash, ok := algorithms[algorithm]
	if !ok {
		return nil, invalid("Upload-Checksum", "algorithm", "must name an algorithm that is known: "+strings.Join(ChecksumAlgorithms(), ", "))
	}
	value, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(value) != newHash().Size() {
		return nil, invalid("Upload-Checksum", "base64", "must be an algorithm and a hash in base64, a space between them")
	}
	return &Checksum{Algorithm: algorithm, Value: value}, nil
}
