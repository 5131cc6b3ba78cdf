package ui

import (
	"fmt"
	"html/template"
	"strings"
)

// Option is one choice of a select field.
type Option struct{ Value, Name string }

// fieldSpec is what a form row shows.
type fieldSpec struct {
	name, label, value, message string
	attrs                       map[string]string // of the input
	hint                        string
	required                    bool
	rows                        string
	options                     []Option
}

// field writes one row of a form: label, input, hint, error, joined for screen readers by
// aria-describedby. It is written here and not in a partial since html/template refuses a type
// attribute that is not a constant.
func field(name, label string, value any, errs FormErrors, more ...any) (template.HTML, error) {
	f := fieldSpec{name: name, label: label, message: errs.Of(name), attrs: map[string]string{}}
	if value != nil {
		f.value = fmt.Sprint(value)
	}
	if len(more)%2 != 0 {
		return "", fmt.Errorf("field %s: want names and values", name)
	}
	for i := 0; i < len(more); i += 2 {
		if err := f.set(fmt.Sprint(more[i]), more[i+1]); err != nil {
			return "", err
		}
	}
	return f.html(), nil
}

func (f *fieldSpec) set(name string, value any) error {
	switch name {
	case "hint":
		f.hint = fmt.Sprint(value)
	case "required":
		f.required = value == true
	case "rows":
		f.rows = fmt.Sprint(value)
	case "options":
		options, ok := value.([]Option)
		if !ok {
			return fmt.Errorf("field %s: options are a %T, want []ui.Option", f.name, value)
		}
		f.options = options
	case "type", "placeholder", "autocomplete", "min", "max", "step", "accept", "pattern", "maxlength", "inputmode":
		f.attrs[name] = fmt.Sprint(value)
	default:
		return fmt.Errorf("field %s: unknown setting %q", f.name, name)
	}
	return nil
}

func (f *fieldSpec) html() template.HTML {
	esc := template.HTMLEscapeString
	id := "f-" + esc(f.name)
	var b, attrs strings.Builder
	fmt.Fprintf(&attrs, ` id="%s" name="%s"`, id, esc(f.name))
	if f.required {
		attrs.WriteString(" required")
	}
	var describedBy []string
	if f.hint != "" {
		describedBy = append(describedBy, id+"-hint")
	}
	if f.message != "" {
		describedBy = append(describedBy, id+"-error")
		attrs.WriteString(` aria-invalid="true"`)
	}
	if len(describedBy) > 0 {
		fmt.Fprintf(&attrs, ` aria-describedby="%s"`, strings.Join(describedBy, " "))
	}
	kind := f.attrs["type"]
	if kind == "" {
		kind = "text"
	}
	for _, name := range []string{"placeholder", "autocomplete", "min", "max", "step", "accept", "pattern", "maxlength", "inputmode"} {
		if v, ok := f.attrs[name]; ok {
			fmt.Fprintf(&attrs, ` %s="%s"`, name, esc(v))
		}
	}
	b.WriteString(`<div class="form-row">`)
	if kind == "checkbox" {
		checked := ""
		if f.value == "true" || f.value == "on" {
			checked = " checked"
		}
		fmt.Fprintf(&b, `<label class="check"><input type="checkbox" value="true"%s%s> %s</label>`, attrs.String(), checked, esc(f.label))
	} else {
		fmt.Fprintf(&b, `<label for="%s">%s</label>`, id, esc(f.label))
		f.input(&b, esc(kind), attrs.String())
	}
	if f.hint != "" {
		fmt.Fprintf(&b, `<p class="hint" id="%s-hint">%s</p>`, id, esc(f.hint))
	}
	if f.message != "" {
		fmt.Fprintf(&b, `<p class="error" id="%s-error">%s</p>`, id, esc(f.message))
	}
	b.WriteString(`</div>`)
	return template.HTML(b.String())
}

func (f *fieldSpec) input(b *strings.Builder, kind, attrs string) {
	esc := template.HTMLEscapeString
	switch {
	case f.options != nil:
		fmt.Fprintf(b, `<select%s>`, attrs)
		for _, o := range f.options {
			selected := ""
			if o.Value == f.value {
				selected = " selected"
			}
			fmt.Fprintf(b, `<option value="%s"%s>%s</option>`, esc(o.Value), selected, esc(o.Name))
		}
		b.WriteString(`</select>`)
	case f.rows != "":
		// The line feed behind the tag is dropped by browsers and keeps one of the value's own.
		fmt.Fprintf(b, "<textarea rows=\"%s\"%s>\n%s</textarea>", esc(f.rows), attrs, esc(f.value))
	case kind == "password" || kind == "file":
		fmt.Fprintf(b, `<input type="%s"%s>`, kind, attrs) // never sent back
	default:
		fmt.Fprintf(b, `<input type="%s" value="%s"%s>`, kind, esc(f.value), attrs)
	}
}
