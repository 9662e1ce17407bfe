package artifacts

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// uploadBound is how long one artifact may take to one server.
	uploadBound = 5 * time.Minute
	// pruneBound is how long removing what is old may take on one server.
	pruneBound = 30 * time.Second
	// pruneIdle is longer than any deployment takes from its upload to its jobs.
	pruneIdle = time.Hour
	// listLimit is the size in bytes of the longest list that is read: ten
	// thousand artifacts.
	listLimit = 2 << 20
)

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

// Prune removes from the servers what none of these URLs names and nobody has
// uploaded or asked for within the last hour: somebody else may have uploaded it
// for a job that is not registered yet. Mirrors forget by themselves. The error
// names each server on which something may be left; the others are done.
func (u *Uploader) Prune(ctx context.Context, needed []string) error {
	failed := make([]error, len(u.servers))
	var pruning sync.WaitGroup
	for i, server := range u.servers {
		pruning.Go(func() {
			if err := u.pruneOn(ctx, server, needed); err != nil {
				failed[i] = fmt.Errorf("remove old programs from %s: %w", server, err)
			}
		})
	}
	pruning.Wait()
	return errors.Join(failed...)
}

func (u *Uploader) pruneOn(ctx context.Context, server string, needed []string) error {
	ctx, cancel := context.WithTimeout(ctx, pruneBound)
	defer cancel()
	there, err := u.list(ctx, server)
	if err != nil {
		return err
	}
	for _, one := range there {
		a, err := newArtifact(one.SHA256, one.Name)
		if err != nil {
			return err
		}
		// By its contents: whatever host and name a job knows it under.
		isNeeded := slices.ContainsFunc(needed, func(url string) bool { return strings.Contains(url, a.sum) })
		if isNeeded || one.Idle < pruneIdle.Seconds() {
			continue
		}
		if _, err := u.do(ctx, http.MethodDelete, server, a, nil); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return nil
}

// list asks a server what it has.
func (u *Uploader) list(ctx context.Context, server string) ([]listed, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+"/", nil)
	if err != nil {
		return nil, err
	}
	response, err := u.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(response.Status)
	}
	var there []listed
	if err := json.NewDecoder(io.LimitReader(response.Body, listLimit)).Decode(&there); err != nil {
		return nil, fmt.Errorf("read the list of what it has: %w", err)
	}
	return there, nil
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
