addEventListener("DOMContentLoaded", () => {
  // The theme gives its headings no level, and its two sidebars no name.
  for (const title of document.querySelectorAll("p.caption[role=heading]")) title.ariaLevel = "2";
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
  // What scrolls can be reached and scrolled with the keyboard.
  for (const box of document.querySelectorAll("article pre, .table-wrapper, div.math, .sidebar-scroll, .toc-scroll")) {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
  }
});
