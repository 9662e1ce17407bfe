package player

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
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
	maxMedia = 1 << 30
	// fetchWithin bounds one request, and stallWithin the wait for more of its
	// answer: the next request goes on where it ended.
	fetchWithin = 15 * time.Minute
	stallWithin = 30 * time.Second
	// maxUnused is how many bytes of contents stay that no playlist shows any more:
	// playlists come back.
	maxUnused = 2 << 30
	// fetchesAtOnce is how many contents a process fetches at the same time.
	fetchesAtOnce = 4
)

// Media keeps what is shown by its SHA-256, for all devices of a process.
type Media struct {
	dir      string
	gateways func() ([]string, error)
	client   *http.Client
	most     int64
	unused   int64
	stall    time.Duration
	places   chan struct{}

	mu       sync.Mutex
	contents map[string]*content
	used     map[string][]Item // by device
}

// content is one that somebody asked for; whoever holds its turn may change it.
type content struct {
	turn     chan struct{}
	kept     bool
	failed   error
	attempts int
	retry    time.Time
}

// NewMedia keeps contents in a folder, which it makes when there is none. Those that
// are known by a path alone are fetched from gateways, of which it asks for the URLs
// each time; nil is none.
func NewMedia(dir string, gateways func() ([]string, error)) (*Media, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the media: %w", err)
	}
	if gateways == nil {
		gateways = func() ([]string, error) { return nil, nil }
	}
	return &Media{
		dir: dir, gateways: gateways, most: maxMedia, unused: maxUnused, used: make(map[string][]Item), stall: stallWithin, places: make(chan struct{}, fetchesAtOnce), contents: make(map[string]*content),
		client: &http.Client{Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: stallWithin,
			DisableCompression:    true, // ranges are of the content as it is
			MaxIdleConnsPerHost:   fetchesAtOnce,
			IdleConnTimeout:       time.Minute,
		}},
	}, nil
}

// Path is where the content with a hash is, once Get has returned.
func (m *Media) Path(sha256 string) string { return filepath.Join(m.dir, sha256) }

// Get returns when the content of an item is there and has been checked, or when ctx
// ends. Between attempts there are pauses, as between those of any device that wants
// the same content; failed is told each time that it fails.
func (m *Media) Get(ctx context.Context, item Item, failed func(error)) error {
	c := m.content(item.SHA256)
	for {
		select {
		case c.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := m.attempt(ctx, c, item)
		kept, wait := c.kept, time.Until(c.retry)
		<-c.turn
		if kept {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failed(err)
		if err := sleep(ctx, max(wait, time.Millisecond)); err != nil {
			return err
		}
	}
}

// Use says what a device shows, or will: the rest of what it used may go.
func (m *Media) Use(deviceID string, items ...Item) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used[deviceID] = items
}

// Tidy removes contents that no device uses, those that were fetched first, until
// what is left of them is little enough. All devices must have said what they use.
func (m *Media) Tidy() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := make(map[string]bool)
	for _, items := range m.used {
		for _, item := range items {
			used[item.SHA256] = true
		}
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return fmt.Errorf("tidying the media: %w", err)
	}
	var unused []fs.FileInfo
	var size int64
	for _, entry := range entries {
		if name, _, _ := strings.Cut(entry.Name(), "."); used[name] {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			return fmt.Errorf("tidying the media: %w", err)
		}
		unused, size = append(unused, info), size+info.Size()
	}
	slices.SortFunc(unused, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, info := range unused {
		if size <= m.unused {
			break
		}
		name, _, _ := strings.Cut(info.Name(), ".")
		if err := m.forget(name, info.Name()); err != nil {
			return fmt.Errorf("tidying the media: %w", err)
		}
		size -= info.Size()
	}
	return nil
}

// forget removes a file of a content, unless somebody has its turn.
func (m *Media) forget(sha256, file string) error {
	if c := m.contents[sha256]; c != nil {
		select {
		case c.turn <- struct{}{}:
		default:
			return nil
		}
		defer func() { <-c.turn }()
		c.kept = false
	}
	return os.Remove(filepath.Join(m.dir, file))
}

func (m *Media) content(sha256 string) *content {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.contents[sha256]
	if c == nil {
		c = &content{turn: make(chan struct{}, 1)}
		m.contents[sha256] = c
	}
	return c
}

func (m *Media) attempt(ctx context.Context, c *content, item Item) error {
	if c.kept {
		return nil
	}
	if c.failed != nil && time.Now().Before(c.retry) {
		return c.failed
	}
	err := m.obtain(ctx, item)
	c.kept, c.failed = err == nil, err
	if err != nil && ctx.Err() == nil {
		c.retry = time.Now().Add(backOff(c.attempts))
		c.attempts++
	}
	return err
}

// obtain fetches a content that is not there, or is there and broken.
func (m *Media) obtain(ctx context.Context, item Item) error {
	path := m.Path(item.SHA256)
	switch good, err := hasHash(path, item.SHA256); {
	case good:
		return nil
	case err == nil:
		err = os.Remove(path)
		if err != nil {
			return fmt.Errorf("removing a broken content: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("checking a content: %w", err)
	}
	select {
	case m.places <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.places }()
	addresses, err := m.addresses(item)
	if err != nil {
		return fmt.Errorf("fetching %s for %s: %w", item.URL, item.CreativeID, err)
	}
	var problems error
	for _, address := range addresses {
		// Each goes on where the one before it broke off.
		err := m.fetch(ctx, address, item)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("fetching %s for %s: %w", address, item.CreativeID, err)
		if ctx.Err() != nil {
			return err
		}
		if problems != nil {
			err = fmt.Errorf("%w; %w", problems, err)
		}
		problems = err
	}
	return problems
}

// addresses are where an item may be had, to be tried in this order.
func (m *Media) addresses(item Item) ([]string, error) {
	if !item.ofGateways() {
		return []string{item.URL}, nil
	}
	gateways, err := m.gateways()
	if err == nil && len(gateways) == 0 {
		err = errors.New("no gateway is known: --gateway names them")
	}
	if err != nil {
		return nil, err
	}
	all := make([]string, len(gateways))
	for n, place := range rand.Perm(len(gateways)) {
		all[n] = strings.TrimSuffix(gateways[place], "/") + item.URL
	}
	return all, nil
}

func hasHash(path, want string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return false, err
	}
	return hex.EncodeToString(sum.Sum(nil)) == want, nil
}

// fetch makes one request, for what is missing. What it gets stays for the next one,
// unless it is wrong.
func (m *Media) fetch(ctx context.Context, address string, item Item) error {
	path := m.Path(item.SHA256)
	part, tag := path+".part", path+".tag"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	have, err := io.Copy(sum, f)
	if err != nil {
		return err
	}
	if have > 0 && hex.EncodeToString(sum.Sum(nil)) == item.SHA256 {
		return finish(f, path)
	}
	validator, err := os.ReadFile(tag)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	ctx, cancel := context.WithTimeoutCause(ctx, fetchWithin, fmt.Errorf("it took longer than %s", fetchWithin))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stalled := time.AfterFunc(m.stall, func() { stop(fmt.Errorf("nothing came for %s", m.stall)) })
	defer stalled.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	if have > 0 && len(validator) > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		req.Header.Set("If-Range", string(validator))
	}
	res, err := m.client.Do(req)
	if err != nil {
		return because(ctx, err)
	}
	defer res.Body.Close()
	begins := fmt.Sprintf("bytes %d-", have)
	switch {
	case res.StatusCode == http.StatusPartialContent && have > 0 && strings.HasPrefix(res.Header.Get("Content-Range"), begins):
	case res.StatusCode == http.StatusOK:
		if err := m.restart(f, sum, tag, res); err != nil {
			return err
		}
		have = 0
	case res.StatusCode >= http.StatusInternalServerError, res.StatusCode == http.StatusNotFound, res.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("the answer is %s", res.Status)
	default:
		// What is there may be why, so the next request is for all of it.
		return errors.Join(fmt.Errorf("the answer is %s", res.Status), f.Truncate(0))
	}
	if have+res.ContentLength > m.most {
		return errors.Join(fmt.Errorf("it has %d bytes; at most %d are taken", have+res.ContentLength, m.most), f.Truncate(0))
	}
	body := &alive{res.Body, func() { stalled.Reset(m.stall) }}
	n, err := io.Copy(io.MultiWriter(sum, f), io.LimitReader(body, m.most-have+1))
	if have+n > m.most {
		return errors.Join(fmt.Errorf("it has more than %d bytes", m.most), f.Truncate(0))
	}
	if err != nil {
		return because(ctx, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != item.SHA256 {
		return errors.Join(fmt.Errorf("it is not what was announced: its SHA-256 is %s, not %s", got, item.SHA256), f.Truncate(0))
	}
	return finish(f, path)
}

// finish gives a content that was fetched and checked its name.
func finish(f *os.File, path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := replace(f.Name(), path); err != nil {
		return err
	}
	os.Remove(path + ".tag")
	return nil
}

// restart forgets what was fetched, and keeps what the rest of the answer can be
// asked for with. Weak tags do not say that each byte is the same.
func (m *Media) restart(f *os.File, sum hash.Hash, tag string, res *http.Response) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sum.Reset()
	validator := res.Header.Get("ETag")
	if validator == "" || strings.HasPrefix(validator, "W/") {
		validator = res.Header.Get("Last-Modified")
	}
	return keep(tag, []byte(validator))
}

// because is why ctx ended, if that made err.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// alive tells of each read.
type alive struct {
	io.Reader
	read func()
}

func (a *alive) Read(b []byte) (int, error) {
	n, err := a.Reader.Read(b)
	if n > 0 {
		a.read()
	}
	return n, err
}
