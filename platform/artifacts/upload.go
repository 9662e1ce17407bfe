package artifacts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// uploadBound is how long one artifact may take to one server.
const uploadBound = 5 * time.Minute

// Dial connects to a server.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Uploader brings artifacts to the servers. It is the operator's.
type Uploader struct {
	servers []string
	http    *http.Client
}

// NewUploader is for servers, host:port, which take what is shown in config for
// the operator's certificate. A nil dial is the usual one.
func NewUploader(servers []string, config *tls.Config, dial Dial) *Uploader {
	return &Uploader{servers: servers, http: &http.Client{Transport: &http.Transport{
		DialContext: dial, TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second,
		ExpectContinueTimeout: 5 * time.Second, IdleConnTimeout: 30 * time.Second,
	}}}
}

// Upload brings the file at path, whose SHA-256 is sum, to every server that does
// not have it, and returns the URL with which jobs get it. It succeeds when more
// than half of the servers have it: mirrors ask them all. The error names each
// server that failed.
func (u *Uploader) Upload(ctx context.Context, path, sum string) (url string, err error) {
	a, err := newArtifact(sum, filepath.Base(path))
	if err != nil {
		return "", err
	}
	failed := make([]error, len(u.servers))
	var uploading sync.WaitGroup
	for i, server := range u.servers {
		uploading.Go(func() {
			if err := u.uploadTo(ctx, server, a, path); err != nil {
				failed[i] = fmt.Errorf("%s: %w", server, err)
			}
		})
	}
	uploading.Wait()
	have := 0
	for _, err := range failed {
		if err == nil {
			have++
		}
	}
	if 2*have <= len(u.servers) {
		return "", fmt.Errorf("upload %s: %d of %d servers have it: %w", a.name, have, len(u.servers), errors.Join(failed...))
	}
	return a.URL(), nil
}

func (u *Uploader) uploadTo(ctx context.Context, server string, a artifact, path string) error {
	ctx, cancel := context.WithTimeout(ctx, uploadBound)
	defer cancel()
	have, err := u.do(ctx, http.MethodHead, server, a, nil)
	if err != nil || have {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = u.do(ctx, http.MethodPut, server, a, file)
	return err
}

// Remove takes an artifact from every server. Mirrors keep what they have.
func (u *Uploader) Remove(ctx context.Context, sum, name string) error {
	a, err := newArtifact(sum, name)
	if err != nil {
		return err
	}
	var failed []error
	for _, server := range u.servers {
		if _, err := u.do(ctx, http.MethodDelete, server, a, nil); err != nil {
			failed = append(failed, fmt.Errorf("remove %s from %s: %w", name, server, err))
		}
	}
	return errors.Join(failed...)
}

// do says whether the server knows the artifact.
func (u *Uploader) do(ctx context.Context, method, server string, a artifact, body *os.File) (known bool, err error) {
	// A nil *os.File would be a body that is there.
	var reader io.Reader
	if body != nil {
		reader = body
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+server+a.path(), reader)
	if err != nil {
		return false, err
	}
	if body != nil {
		info, err := body.Stat()
		if err != nil {
			return false, err
		}
		request.ContentLength = info.Size()
		// A server that refuses says so before it is sent all of it.
		request.Header.Set("Expect", "100-continue")
	}
	response, err := u.http.Do(request)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK, http.StatusCreated, http.StatusNoContent:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, 1000))
	if err != nil {
		return false, fmt.Errorf("%s: %w", response.Status, err)
	}
	switch response.StatusCode {
	case http.StatusUnprocessableEntity:
		return false, fmt.Errorf("%w: %s", ErrMismatch, strings.TrimSpace(string(text)))
	case http.StatusRequestEntityTooLarge:
		return false, fmt.Errorf("%w: %s", ErrTooLarge, strings.TrimSpace(string(text)))
	}
	return false, fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(text)))
}
