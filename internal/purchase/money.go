package purchase

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

var currencyPattern = regexp.MustCompile(`^[A-Z]{3}$`)

// minorDigits returns how many decimal digits a currency's minor unit has (ISO 4217, table A.1).
func minorDigits(currency string) int {
	switch currency {
	case "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF":
		return 0
	case "BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND":
		return 3
	}
	return 2
}

// FormatMoney writes minor units for people: 1234567, "EUR" gives "12,345.67 EUR".
func FormatMoney(minor int64, currency string) string {
	digits := minorDigits(currency)
	sign := ""
	if minor < 0 {
		sign, minor = "-", -minor
	}
	scale := int64(math.Pow10(digits))
	whole := strconv.FormatInt(minor/scale, 10)
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if digits == 0 {
		return sign + whole + " " + currency
	}
	return fmt.Sprintf("%s%s.%0*d %s", sign, whole, digits, minor%scale, currency)
}

var amountPattern = regexp.MustCompile(`^[0-9]{1,12}(\.[0-9]{1,3})?$`)

// ParseMoney reads an amount as people write it in a form ("1234.5") into minor units. It refuses
// more digits than the currency has, rather than round.
func ParseMoney(s, currency string) (int64, error) {
	s = strings.TrimSpace(s)
	if !amountPattern.MatchString(s) {
		return 0, fmt.Errorf("%q is no amount: write it as 1234.50", s)
	}
	digits := minorDigits(currency)
	whole, frac, _ := strings.Cut(s, ".")
	if len(frac) > digits {
		return 0, fmt.Errorf("%q: %s has %d decimal digits", s, currency, digits)
	}
	return strconv.ParseInt(whole+frac+strings.Repeat("0", digits-len(frac)), 10, 64)
}
