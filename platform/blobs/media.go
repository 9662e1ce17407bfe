package blobs

import (
	"bytes"
	"mime"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// sniffLength is how many bytes decide the media type.
const sniffLength = 512

const textType = "text/plain; charset=utf-8"

// endings are the media types that are taken, each with the ending of a file.
var endings = map[string]string{
	"image/png":  ".png",
	"image/jpeg": ".jpg",
	"image/gif":  ".gif",
	"image/webp": ".webp",
	"video/mp4":  ".mp4",
	"video/webm": ".webm",
	textType:     ".txt",
}

// MediaTypes are the media types that are taken, in alphabetical order.
func MediaTypes() []string {
	all := make([]string, 0, len(endings))
	for mediaType := range endings {
		all = append(all, mediaType)
	}
	slices.Sort(all)
	return all
}

// detect tells the media type by the first bytes (https://mimesniff.spec.whatwg.org).
func detect(head []byte) string {
	mediaType := http.DetectContentType(head)
	if mediaType == "video/webm" && !isWebM(head) {
		return "video/matroska"
	}
	return mediaType
}

// isWebM tells WebM from the rest of Matroska, which begins alike, by its DocType.
func isWebM(head []byte) bool {
	i := bytes.Index(head, []byte{0x42, 0x82})
	return i >= 0 && bytes.Contains(head[i:min(len(head), i+16)], []byte("webm"))
}

// decide is the media type of contents that begin with head, when it is taken and
// is what was claimed. An empty claim claims nothing.
func decide(head []byte, claim string) (string, error) {
	mediaType := detect(head)
	if _, ok := endings[mediaType]; !ok {
		f := *ErrMediaType
		f.Message = "these contents (" + mediaType + ") are not of a media type that is taken: " + strings.Join(MediaTypes(), ", ")
		return "", &f
	}
	if err := agree(mediaType, claim); err != nil {
		return "", err
	}
	return mediaType, nil
}

// agree compares the media type with the one that was claimed.
func agree(mediaType, claim string) error {
	if claim == "" {
		return nil
	}
	base, parameters, err := mime.ParseMediaType(claim)
	charset := parameters["charset"]
	if is, _, _ := strings.Cut(mediaType, ";"); err == nil && base == is && (charset == "" || strings.EqualFold(charset, "utf-8")) {
		return nil
	}
	f := *ErrMediaTypeClaim
	f.Message = "the contents are " + mediaType + ", which is not what was claimed"
	return &f
}

// text checks, piece by piece, that contents are text in UTF-8.
type text struct {
	rest []byte // the beginning of a character that a piece ended in
	bad  bool
}

func (t *text) add(p []byte) {
	if bytes.IndexByte(p, 0) >= 0 {
		t.bad = true
	}
	for len(t.rest) > 0 && len(p) > 0 && !utf8.FullRune(t.rest) {
		t.rest, p = append(t.rest, p[0]), p[1:]
	}
	if utf8.FullRune(t.rest) {
		t.bad = t.bad || !utf8.Valid(t.rest)
		t.rest = t.rest[:0]
	}
	if len(t.rest) > 0 {
		return
	}
	whole := len(p)
	for i := len(p) - 1; i >= 0 && i >= len(p)-utf8.UTFMax; i-- {
		if utf8.RuneStart(p[i]) {
			if !utf8.FullRune(p[i:]) {
				whole = i
			}
			break
		}
	}
	t.bad = t.bad || !utf8.Valid(p[:whole])
	t.rest = append(t.rest, p[whole:]...)
}

func (t *text) valid() bool { return !t.bad && len(t.rest) == 0 }
