package demo

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	// mediaPath is below which gateways have media, each by its SHA-256.
	mediaPath  = "/v1/media/"
	uploadPath = mediaPath + "uploads"
	mediaType  = "image/png"
	// requestWithin bounds one request.
	requestWithin = 30 * time.Second
	uploadPause   = 100 * time.Millisecond
)

// upload brings a picture to the platform unless it is there, as an owner does. It
// begins anew while nobody is there to take it.
func (m *maker) upload(ctx context.Context, token, organisation string, p picture) error {
	for {
		err := m.uploadOnce(ctx, token, organisation, p)
		var away *awayError
		if !errors.As(err, &away) {
			return err
		}
		timer := time.NewTimer(uploadPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// uploadOnce speaks tus 1.0.0, all in one part.
func (m *maker) uploadOnce(ctx context.Context, token, organisation string, p picture) error {
	there, err := m.request(ctx, http.MethodHead, mediaPath+p.sum, nil, nil)
	if err != nil {
		return err
	}
	switch there.code {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
	default:
		return fmt.Errorf("asking for it: the answer is %s", there.text)
	}
	encode := base64.StdEncoding.EncodeToString
	begun, err := m.request(ctx, http.MethodPost, uploadPath+"?organisation_id="+url.QueryEscape(organisation), nil, map[string]string{
		"Authorization": "Bearer " + token, "Tus-Resumable": "1.0.0", "Upload-Length": strconv.Itoa(len(p.content)),
		"Upload-Metadata": "sha256 " + encode([]byte(p.sum)) + ",filetype " + encode([]byte(mediaType)),
	})
	if err != nil {
		return err
	}
	if begun.code != http.StatusCreated || begun.path == "" {
		return fmt.Errorf("beginning: the answer is %s", begun.text)
	}
	done, err := m.request(ctx, http.MethodPatch, begun.path, p.content, map[string]string{
		"Authorization": "Bearer " + token, "Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream",
	})
	if err != nil {
		return err
	}
	if done.code != http.StatusNoContent {
		return fmt.Errorf("sending it: the answer is %s", done.text)
	}
	m.change()
	return nil
}

// awayError is that nobody answers yet.
type awayError struct{ error }

// answer is what a request got.
type answer struct {
	code int
	text string // the status, and what is in the body
	path string // of Location, if there is one
}

// request makes one. Errors: awayError.
func (m *maker) request(ctx context.Context, method, path string, body []byte, header map[string]string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+m.cfg.HTTP+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	response, err := m.http.Do(r)
	if err != nil {
		return answer{}, &awayError{err}
	}
	defer response.Body.Close()
	const most = 4 << 10
	text, err := io.ReadAll(io.LimitReader(response.Body, most))
	if err != nil {
		return answer{}, &awayError{fmt.Errorf("%s %s: %w", method, path, err)}
	}
	got := answer{code: response.StatusCode, text: fmt.Sprintf("%s %s", response.Status, text)}
	switch got.code {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
		return answer{}, &awayError{fmt.Errorf("%s %s: the answer is %s", method, path, got.text)}
	}
	if place, err := response.Location(); err == nil {
		got.path = place.Path
	}
	return got, nil
}
