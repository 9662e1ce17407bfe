package transcode

import (
	"math"
	"math/bits"
	"strconv"
)

// numberLen is the length of the JSON number that the text begins with, or 0.
func numberLen(text []byte) int {
	i := 0
	if i < len(text) && text[i] == '-' {
		i++
	}
	whole := digits(text[i:])
	if whole == 0 || whole > 1 && text[i] == '0' {
		return 0
	}
	i += whole
	if i < len(text) && text[i] == '.' {
		n := digits(text[i+1:])
		if n == 0 {
			return 0
		}
		i += 1 + n
	}
	if i < len(text) && (text[i] == 'e' || text[i] == 'E') {
		i++
		if i < len(text) && (text[i] == '+' || text[i] == '-') {
			i++
		}
		n := digits(text[i:])
		if n == 0 {
			return 0
		}
		i += n
	}
	return i
}

// digits is how many digits the text begins with.
func digits(text []byte) int {
	for i, c := range text {
		if c < '0' || '9' < c {
			return i
		}
	}
	return len(text)
}

// parseInt reads a JSON number that is an integer of so many bits: 1.0, 10e-1
// and 0.1e1 are integers.
func parseInt(number []byte, size int) (int64, bool) {
	negative, magnitude, ok := integral(number)
	if !ok {
		return 0, false
	}
	limit := uint64(1) << (size - 1)
	if negative {
		return -int64(magnitude), magnitude <= limit
	}
	return int64(magnitude), magnitude < limit
}

// parseUint is parseInt for numbers without sign.
func parseUint(number []byte, size int) (uint64, bool) {
	negative, magnitude, ok := integral(number)
	return magnitude, ok && (!negative || magnitude == 0) && bits.Len64(magnitude) <= size
}

// maxDigits is how many digits before the decimal point an integer may have
// once its exponent is applied; the largest 64-bit number has so many.
const maxDigits = 20

// integral takes a valid JSON number apart.
func integral(number []byte) (negative bool, magnitude uint64, ok bool) {
	if number[0] == '-' {
		negative = true
		number = number[1:]
	}
	n := digits(number)
	whole, rest := number[:n], number[n:]
	if len(rest) == 0 && n < maxDigits {
		for _, c := range whole {
			magnitude = magnitude*10 + uint64(c-'0')
		}
		return negative, magnitude, true
	}
	if whole[0] == '0' {
		whole = nil
	}
	var fraction []byte
	if len(rest) > 0 && rest[0] == '.' {
		n := digits(rest[1:])
		fraction, rest = rest[1:1+n], rest[1+n:]
		for len(fraction) > 0 && fraction[len(fraction)-1] == '0' {
			fraction = fraction[:len(fraction)-1]
		}
	}
	if len(whole) == 0 && len(fraction) == 0 {
		return negative, 0, true
	}
	exponent := 0
	if len(rest) > 0 {
		e, err := strconv.ParseInt(string(rest[1:]), 10, 32)
		if err != nil {
			return false, 0, false
		}
		exponent = int(e)
	}
	if exponent < 0 {
		// What the exponent moves behind the point must be zeros.
		if len(fraction) > 0 || len(whole)+exponent < 0 {
			return false, 0, false
		}
		for _, c := range whole[len(whole)+exponent:] {
			if c != '0' {
				return false, 0, false
			}
		}
		whole, exponent = whole[:len(whole)+exponent], 0
	}
	if len(fraction) > exponent || len(whole)+exponent > maxDigits {
		return false, 0, false
	}
	magnitude, ok = decimal(magnitude, whole)
	if ok {
		magnitude, ok = decimal(magnitude, fraction)
	}
	for i := len(fraction); i < exponent && ok; i++ {
		magnitude, ok = decimal(magnitude, []byte("0"))
	}
	return negative, magnitude, ok
}

// decimal appends decimal digits to a number.
func decimal(n uint64, text []byte) (uint64, bool) {
	for _, c := range text {
		high, low := bits.Mul64(n, 10)
		sum, carry := bits.Add64(low, uint64(c-'0'), 0)
		if high != 0 || carry != 0 {
			return 0, false
		}
		n = sum
	}
	return n, true
}

// parseFloat reads a JSON number of so many bits, in its range.
func parseFloat(number []byte, size int) (float64, bool) {
	n, err := strconv.ParseFloat(string(number), size)
	return n, err == nil
}

// parseFloatText reads what a string may hold in the place of a float.
func parseFloatText(text []byte, size int) (float64, bool) {
	switch string(text) {
	case "NaN":
		return math.NaN(), true
	case "Infinity":
		return math.Inf(1), true
	case "-Infinity":
		return math.Inf(-1), true
	}
	if len(text) == 0 || numberLen(text) != len(text) {
		return 0, false
	}
	return parseFloat(text, size)
}

// appendFloat writes a float of so many bits as JSON has it: the shortest
// digits that read back as the same number.
func appendFloat(dst []byte, n float64, size int) []byte {
	switch {
	case math.IsNaN(n):
		return append(dst, `"NaN"`...)
	case math.IsInf(n, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(n, -1):
		return append(dst, `"-Infinity"`...)
	}
	format := byte('f')
	if abs := math.Abs(n); abs != 0 && (size == 64 && (abs < 1e-6 || abs >= 1e21) ||
		size == 32 && (float32(abs) < 1e-6 || float32(abs) >= 1e21)) {
		format = 'e'
	}
	dst = strconv.AppendFloat(dst, n, format, -1, size)
	// Go writes 1e-07 where JSON has 1e-7.
	if i := len(dst) - 4; format == 'e' && i >= 0 && string(dst[i:i+3]) == "e-0" {
		dst = append(dst[:i+2], dst[i+3])
	}
	return dst
}
