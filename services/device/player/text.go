package player

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
)

// TextType is the media type of a text with a style.
const TextType = "application/vnd.marquee.text+json"

const (
	maxTextFile  = 16 << 10
	maxTextLines = 20
)

// Text is a text with a style, as docs/device-protocol.md says.
type Text struct {
	// Text is on at most 20 lines, which "\n" is between. It has no other control
	// characters.
	Text string `json:"text"`
	// Color and Background are as "#RRGGBB".
	Color      string `json:"color"`
	Background string `json:"background"`
	// SizePercent is how high a line is, in percent of the screen's height.
	SizePercent int `json:"size_percent"`
	// Alignment is left, center or right.
	Alignment string `json:"alignment"`
	Bold      bool   `json:"bold"`
}

// Text reads the text that an item shows, whose content is there while it is shown.
// An item of another media type has none: ok is false.
func (d *Display) Text(item Item) (t Text, ok bool, err error) {
	if item.MediaType != TextType {
		return Text{}, false, nil
	}
	f, err := os.Open(d.media.Path(item.SHA256))
	if err != nil {
		return Text{}, true, fmt.Errorf("opening the text of %s: %w", item.CreativeID, err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxTextFile))
	if err != nil {
		return Text{}, true, fmt.Errorf("reading the text of %s: %w", item.CreativeID, err)
	}
	t, err = parseText(content)
	if err != nil {
		return Text{}, true, fmt.Errorf("reading the text of %s: %w", item.CreativeID, err)
	}
	return t, true, nil
}

// parseText reads a text. What a terminal would take for more than text is left out.
func parseText(content []byte) (Text, error) {
	var t Text
	if err := json.Unmarshal(content, &t); err != nil {
		return Text{}, fmt.Errorf("it is no JSON of a text: %w", err)
	}
	t.Text = strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t':
			return ' '
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co, unicode.Cs):
			return -1
		}
		return r
	}, t.Text)
	lines := strings.Split(t.Text, "\n")
	t.Text = strings.Join(lines[:min(len(lines), maxTextLines)], "\n")
	return t, nil
}
