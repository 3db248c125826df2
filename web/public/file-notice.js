// A plain script, because a module would not load from file:// and could not tell the reader why.
if (location.protocol === 'file:') {
  document.getElementById('opened-as-file').hidden = false;
}
