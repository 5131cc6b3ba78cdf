package chart

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Unit says how values are written and where an axis is divided.
type Unit int

// The units.
const (
	Number         Unit = iota
	Ratio               // 0.42 is written as 42 %
	Bytes               // 1536 is 1.5 KiB
	BytesPerSecond      //
	Celsius             //
	Watts               //
	Seconds             // 7200 is 2 h
)

// Format writes a value for people.
func (u Unit) Format(v float64) string {
	if !ok(v) {
		return "no data"
	}
	switch u {
	case Ratio:
		return plain(v*100, 1) + " %"
	case Bytes:
		return binary(v)
	case BytesPerSecond:
		return binary(v) + "/s"
	case Celsius:
		return plain(v, 1) + " °C"
	case Watts:
		return plain(v, 2) + " W"
	case Seconds:
		return seconds(v)
	}
	return plain(v, 2)
}

// ticks divides the axis from low to high into two to five parts of a round size.
func (u Unit) ticks(low, high float64) []float64 {
	step := roundStep((high-low)/4, 10)
	switch u {
	case Bytes, BytesPerSecond:
		unit := 1.0
		for unit*1024 <= (high-low)/2 {
			unit *= 1024
		}
		step = unit * roundStep((high-low)/4/unit, 10)
		if step < 1 {
			step = 1
		}
	case Seconds:
		unit := 1.0
		for _, s := range []float64{60, 3600, 86400} {
			if (high-low)/2 >= s {
				unit = s
			}
		}
		step = unit * math.Max(1, roundStep((high-low)/4/unit, 10))
	}
	var all []float64
	for i := math.Floor(low / step); ; i++ {
		v := i * step
		all = append(all, v)
		if len(all) > 1 && v >= high-step*1e-9 || len(all) > 12 {
			return all
		}
	}
}

// roundStep is the first of 1, 2, 2.5, 5 times a power of the base that is not below v.
func roundStep(v, base float64) float64 {
	if v <= 0 || !ok(v) {
		return 1
	}
	power := math.Pow(base, math.Floor(math.Log(v)/math.Log(base)))
	for _, m := range []float64{1, 2, 2.5, 5} {
		if m*power >= v*(1-1e-9) {
			return m * power
		}
	}
	return base * power
}

// plain writes a number with at most digits behind the point and groups its thousands.
func plain(v float64, digits int) string {
	if math.Abs(v) >= 100 {
		digits = 0
	}
	shift := math.Pow(10, float64(digits))
	text := strconv.FormatFloat(math.Round(v*shift)/shift, 'f', -1, 64)
	whole, fraction, _ := strings.Cut(text, ".")
	sign := ""
	if strings.HasPrefix(whole, "-") {
		sign, whole = "−", whole[1:]
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if fraction != "" {
		whole += "." + fraction
	}
	if whole == "0" {
		sign = ""
	}
	return sign + whole
}

func binary(v float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; math.Abs(v) >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	return plain(v, 1) + " " + units[i]
}

func seconds(v float64) string {
	d := time.Duration(v * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return plain(d.Hours()/24, 1) + " d"
	case d >= 2*time.Hour:
		return plain(d.Hours(), 1) + " h"
	case d >= 2*time.Minute:
		return plain(d.Minutes(), 1) + " min"
	}
	return fmt.Sprintf("%s s", plain(v, 1))
}
