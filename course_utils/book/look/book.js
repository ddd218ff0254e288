// What scrolls sideways can be reached with the keyboard.
function reachable() {
  for (const box of document.querySelectorAll("pre, .table-wrapper, div.math, .cell_output, .cell_output .output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
