// The slider over a text's sampling steps. It goes into the page behind the data.
(function (root) {
  const tokens = root.querySelectorAll('.trace-text span');
  const history = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
  const bar = root.querySelector('.trace-bar'), slider = bar.querySelector('input');
  const button = bar.querySelector('button'), label = bar.querySelector('output');
  const last = Number(slider.max);
  let timer = null;
  function show(step) {
    let final = 0;
    tokens.forEach(function (token, i) {
      const changes = history[i], end = changes[changes.length - 1];
      let now = null;
      for (const change of changes) if (change[0] <= step) now = change;
      const done = now === end;
      final += done;
      token.className = done ? '' : now === null || now[1] === null ? 'blank' : 'draft';
      token.textContent = now === null || now[1] === null ? end[1] : now[1];
    });
    slider.value = step;
    label.textContent = 'step ' + step + ' of ' + last + ', ' + final + ' of ' + tokens.length + ' tokens';
  }
  function stop() { clearInterval(timer); timer = null; button.textContent = 'Play'; }
  button.addEventListener('click', function () {
    if (timer !== null) { stop(); return; }
    let step = Number(slider.value) >= last ? 0 : Number(slider.value);
    show(step);
    button.textContent = 'Pause';
    timer = setInterval(function () { show(++step); if (step >= last) stop(); }, Math.max(40, 6000 / last));
  });
  slider.addEventListener('input', function () { stop(); show(Number(slider.value)); });
  bar.hidden = false;
  show(last);
})(document.currentScript.parentElement);
