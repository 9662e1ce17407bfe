package player

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"slices"
	"time"
)

// Playlist is what a device shows, over and over.
type Playlist struct {
	DeviceID string `json:"device_id"`
	// Version grows with each change; 0 is none.
	Version int64  `json:"version"`
	Items   []Item `json:"items"`
}

// Item is one thing to show.
type Item struct {
	CreativeID string `json:"creative_id"`
	URL        string `json:"url"`
	// SHA256 is of the content at URL, in lower-case hexadecimal digits.
	SHA256     string `json:"sha256"`
	MediaType  string `json:"media_type"`
	DurationMS int64  `json:"duration_ms"`
}

// Duration is how long it is shown.
func (i Item) Duration() time.Duration { return time.Duration(i.DurationMS) * time.Millisecond }

var (
	sha256Pattern   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	creativePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
)

const longestItem = 24 * time.Hour

// parsePlaylist reads the playlist of a device. An error says what is wrong with it.
func parsePlaylist(text []byte, deviceID string) (Playlist, error) {
	var p Playlist
	if err := json.Unmarshal(text, &p); err != nil {
		return Playlist{}, fmt.Errorf("reading a playlist: %w", err)
	}
	if p.DeviceID != deviceID {
		return Playlist{}, fmt.Errorf("a playlist is of %q, not of %s", p.DeviceID, deviceID)
	}
	if p.Version < 1 {
		return Playlist{}, fmt.Errorf("a playlist has the version %d", p.Version)
	}
	for n, item := range p.Items {
		if err := item.check(); err != nil {
			return Playlist{}, fmt.Errorf("version %d of the playlist, item %d: %w", p.Version, n+1, err)
		}
	}
	return p, nil
}

func (i Item) check() error {
	// Creative ids are printed on terminals, and hashes are names of files.
	if !creativePattern.MatchString(i.CreativeID) {
		return fmt.Errorf("the creative id %q has other characters than letters, digits, _ and -, or not 1 to 64", i.CreativeID)
	}
	if !sha256Pattern.MatchString(i.SHA256) {
		return fmt.Errorf("the SHA-256 %q has not 64 lower-case hexadecimal digits", i.SHA256)
	}
	if i.DurationMS < 1 || i.DurationMS > longestItem.Milliseconds() {
		return fmt.Errorf("the duration of %d ms is not from 1 ms to %s", i.DurationMS, longestItem)
	}
	address, err := url.Parse(i.URL)
	if err != nil {
		return fmt.Errorf("the URL: %w", err)
	}
	if address.Scheme != "http" && address.Scheme != "https" || address.Host == "" {
		return fmt.Errorf("the URL %q does not begin with http:// or https:// and a host", i.URL)
	}
	return nil
}

// shows says whether an item is in the playlist, with the same content.
func (p Playlist) shows(item Item) bool {
	return slices.ContainsFunc(p.Items, func(i Item) bool { return i.CreativeID == item.CreativeID && i.SHA256 == item.SHA256 })
}

// equal says whether two playlists are the same.
func (p Playlist) equal(o Playlist) bool {
	return p.DeviceID == o.DeviceID && p.Version == o.Version && slices.Equal(p.Items, o.Items)
}

// readPlaylist returns the playlist that was kept, the zero one when there is none.
func readPlaylist(path, deviceID string) (Playlist, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Playlist{}, nil
	}
	if err != nil {
		return Playlist{}, fmt.Errorf("reading the playlist that was kept: %w", err)
	}
	return parsePlaylist(text, deviceID)
}

func (p Playlist) keep(path string) error {
	text, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("keeping the playlist: %w", err)
	}
	return keep(path, text)
}
