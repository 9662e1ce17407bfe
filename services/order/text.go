package order

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// TextType is the media type of the document that players get of a text.
const TextType = "application/vnd.marquee.text+json"

const (
	maxTextCharacters = 500
	maxTextLines      = 20
	defaultSize       = 10 // percent
)

// Alignment is where a text is.
type Alignment string

// Where texts are.
const (
	Left   Alignment = "left"
	Center Alignment = "center"
	Right  Alignment = "right"
)

// Text is a text in a style. As JSON it is the document that players get.
type Text struct {
	Text       string `json:"text"`
	Color      string `json:"color"` // "#RRGGBB"
	Background string `json:"background"`
	// SizePercent is how high a line is, in percent of the screen's height.
	SizePercent int       `json:"size_percent"`
	Alignment   Alignment `json:"alignment"`
	Bold        bool      `json:"bold"`
}

// cleaned is the text as it is stored: with the defaults written out, and ends of
// lines in one form. The rules of colours and sizes are checked before. Errors:
// ErrContent.
func (t Text) cleaned() (Text, error) {
	refused := func(rule, why string) (Text, error) {
		return Text{}, ErrContent.WithField("content.text.text", rule, why)
	}
	t.Text = strings.ReplaceAll(t.Text, "\r\n", "\n")
	switch {
	case !utf8.ValidString(t.Text):
		return refused("text.utf8", "is not valid Unicode")
	case strings.ContainsFunc(t.Text, breaksText):
		return refused("text.characters", "holds control characters other than line feeds")
	case strings.ContainsFunc(t.Text, turnsText):
		return refused("text.bidirectional", "holds characters that turn the direction of what is around them: leave them out")
	case utf8.RuneCountInString(t.Text) > maxTextCharacters:
		return refused("text.length", fmt.Sprintf("has more than %d characters", maxTextCharacters))
	case strings.Count(t.Text, "\n") >= maxTextLines:
		return refused("text.lines", fmt.Sprintf("has more than %d lines", maxTextLines))
	case !strings.ContainsFunc(t.Text, visible):
		return refused("text.visible", "shows nothing")
	}
	t.Color = strings.ToUpper(cmp.Or(t.Color, "#FFFFFF"))
	t.Background = strings.ToUpper(cmp.Or(t.Background, "#000000"))
	t.SizePercent = cmp.Or(t.SizePercent, defaultSize)
	t.Alignment = cmp.Or(t.Alignment, Center)
	return t, nil
}

// breaksText says whether a character is a control character, or ends a line or a
// paragraph without being a line feed.
func breaksText(r rune) bool {
	return r != '\n' && unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp)
}

// turnsText says whether a character can make a text look like another one.
func turnsText(r rune) bool { return unicode.Is(unicode.Bidi_Control, r) }

func visible(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S)
}

// Document is what players get of a cleaned text, and its SHA-256 in 64 hex digits.
// The same text has the same one.
func (t Text) Document() (document []byte, sum string, err error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false) // no page: JSON
	if err := encoder.Encode(t); err != nil {
		return nil, "", fmt.Errorf("writing a text: %w", err)
	}
	document = bytes.TrimSuffix(out.Bytes(), []byte("\n"))
	hash := sha256.Sum256(document)
	return document, hex.EncodeToString(hash[:]), nil
}
